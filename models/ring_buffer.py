"""The tracer's ring buffer of one CPU: can it claim to hold something to read, and give nothing?

kernel/trace/ring_buffer.c. The reader owns one page and swaps it with the head of the ring when it
has read it up. Operations fill or touch a whole page each, so that sequences stay short.
"""

OPERATIONS = ("write", "discard", "consume")
DEPTH = 14
RECIPE = {
    "write": "write 4000 bytes to trace_marker",
    "discard": "let an event happen whose filter is false, while a hist trigger wants time stamps",
    "consume": "read trace_pipe without blocking",
}

SIZE = 4000  # bytes: an event of which one fits into a page
TRACE, CPU_BUFFER = "struct trace_array", "struct ring_buffer_per_cpu"
PAGE, DATA = "struct buffer_page", "struct buffer_data_page"


def prepare(world):
    world.buffer = world.field(world.symbol("global_trace"), TRACE, "array_buffer.buffer")
    buffers = world.field(world.buffer, "struct trace_buffer", "buffers")
    world.cpu_buffer = world.word(buffers + 8 * world.cpu)
    world.data = world.allocate(bytes(SIZE))
    world.ts = world.allocate(bytes(8))
    world.lost = world.allocate(bytes(8))


def write(world):
    world.call("ring_buffer_write", world.buffer, SIZE, world.data)


def discard(world):
    event = world.call("ring_buffer_lock_reserve", world.buffer, SIZE)
    if event:
        world.call("ring_buffer_discard_commit", world.buffer, event)


def consume(world):
    world.call("ring_buffer_consume", world.buffer, world.cpu, world.ts, world.lost)


def bad(world):
    # A first look may still clear away a page's padding; what counts is what stays.
    before = world.save()
    found = 0
    for _ in range(2):
        found = world.call("ring_buffer_peek", world.buffer, world.cpu, world.ts, world.lost)
    empty = world.call("ring_buffer_empty_cpu", world.buffer, world.cpu) & 0xFF
    world.load(before)
    if empty or found:
        return None
    return "ring_buffer_empty_cpu() is false, yet ring_buffer_peek() finds nothing"


def pages(world):
    """The reader's page, then those of the ring from the head on."""
    reader = world.field(world.cpu_buffer, CPU_BUFFER, "reader_page")
    head = world.field(world.cpu_buffer, CPU_BUFFER, "head_page")
    found, page = [reader], head
    while page not in found and len(found) < 16:
        found.append(page)
        page = world.field(page, PAGE, "list.next") & ~3
    return found


def facts(world):
    """Of each page its address, whether it is the commit and the tail page, and its sizes."""
    last = world.field(world.cpu_buffer, CPU_BUFFER, "commit_page")
    tail = world.field(world.cpu_buffer, CPU_BUFFER, "tail_page")
    for page in pages(world):
        data = world.field(page, PAGE, "page")
        write = world.field(page, PAGE, "write") & 0xFFFFF
        commit = world.field(data, DATA, "commit") & 0x3FFFFFFF
        yield page, page == last, page == tail, write, commit, world.field(page, PAGE, "read")


def state(world):
    # Of the sizes counts whether they are none, all or between; time stamps differ always.
    def rough(write, commit, read):
        return (write > 0, commit > 0, (read > 0) + (read >= commit))

    entries = world.field(world.cpu_buffer, CPU_BUFFER, "entries")
    gone = world.field(world.cpu_buffer, CPU_BUFFER, "overrun")
    left = entries - gone - world.field(world.cpu_buffer, CPU_BUFFER, "read")
    return (left, tuple((last, tail, rough(*sizes)) for _, last, tail, *sizes in facts(world)))


def show(world):
    for number, (page, last, tail, write, commit, read) in enumerate(facts(world)):
        place = "reader" if number == 0 else "head" if number == 1 else ""
        marks = (place, "commit" if last else "", "tail" if tail else "")
        sizes = f"write {write:#6x} commit {commit:#6x} read {read:#6x}"
        yield f"page {page & 0xFFFFFF:06x} {sizes}  {' '.join(filter(None, marks))}"
