"""A queue of a module on the kernel's kfifo: does everything that was put in come out again?

For the lab's module kwhy_fifo (src/kwhy/lab/spins/kwhy_fifo.c), which has a mistake.
"""

OPERATIONS = ("put", "get", "rewind")
DEPTH = 12
FIFO = "struct __kfifo"


def prepare(world):
    world.queue = world.symbol("kwhy_queue")  # begins with its struct __kfifo
    world.counts = world.queue + 40  # behind 24 bytes of struct __kfifo and four slots


def put(world):
    world.call("kwhy_queue_put", world.queue, 7)


def get(world):
    world.call("kwhy_queue_get", world.queue)


def rewind(world):
    world.call("kwhy_queue_rewind", world.queue)


def owed(world):
    """What was put in and did not come out yet."""
    return world.word(world.counts) - world.word(world.counts + 8)


def indices(world):
    return world.field(world.queue, FIFO, "in"), world.field(world.queue, FIFO, "out")


def bad(world):
    first, last = indices(world)
    if owed(world) == first - last:
        return None
    return f"{owed(world)} entries were put in and did not come out, {first - last} are there"


def state(world):
    first, last = indices(world)
    mask = world.field(world.queue, FIFO, "mask")
    return (first - last, first & mask, last & mask, owed(world))


def show(world):
    first, last = indices(world)
    yield f"in {first} out {last}, {owed(world)} owed"
