"""Runs in a lab guest: records one command with the function tracer, prints what it got as a tar.

Independent of kwhy's agent, so that the decoder is tested against what the kernel gives to anybody,
and beside the pages the tar holds the kernel's own rendering of the same events (trace.txt).
"""

import io
import json
import os
import sys
import tarfile

TRACING = "/sys/kernel/tracing"
EVENTS = (
    "raw_syscalls/sys_enter",
    "raw_syscalls/sys_exit",
    "sched/sched_process_fork",
    "sched/sched_process_exec",
    "sched/sched_process_exit",
    "task/task_newtask",
)


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def pages(where: str) -> bytes:
    found = b""
    fd = os.open(where, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            got = os.read(fd, 4096)
            if not got:
                return found
            found += got
    except BlockingIOError:
        return found
    finally:
        os.close(fd)


def main() -> None:
    tar_bytes = io.BytesIO()
    tar = tarfile.open(fileobj=tar_bytes, mode="w")

    def put(name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))

    if not os.path.exists(TRACING + "/trace"):
        os.makedirs(TRACING, exist_ok=True)
        os.system("mount -t tracefs tracefs " + TRACING)
    where = TRACING + "/instances/remake"
    os.mkdir(where)
    write(where + "/tracing_on", "0")
    write(where + "/buffer_size_kb", "16384")
    write(where + "/trace_clock", "mono")
    start, go = os.pipe()
    err, err_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go)
        os.read(start, 1)
        os.dup2(err_end, 2)
        os.execv(sys.argv[1], sys.argv[1:])
    os.close(err_end)
    write(where + "/set_ftrace_pid", str(pid))
    write(where + "/set_event_pid", str(pid))
    write(where + "/options/function-fork", "1")
    write(where + "/options/event-fork", "1")
    write(where + "/current_tracer", "function")
    for event in EVENTS:
        write(where + "/events/" + event + "/enable", "1")
        put("blob/format/" + event, read(TRACING + "/events/" + event + "/format"))
    for name in ("function", "funcgraph_entry", "funcgraph_exit"):
        put("blob/format/ftrace/" + name, read(TRACING + "/events/ftrace/" + name + "/format"))
    put("blob/header_page", read(TRACING + "/events/header_page"))
    write(where + "/tracing_on", "1")
    os.close(go)
    status = os.waitpid(pid, 0)[1]
    write(where + "/tracing_on", "0")
    put("trace.txt", read(where + "/trace"))
    # Before current_tracer changes: that empties the buffer.
    for cpu in sorted(os.listdir(where + "/per_cpu")):
        put(cpu, pages(where + "/per_cpu/" + cpu + "/trace_pipe_raw"))
    facts = {"status": status >> 8, "pid": pid, "err": os.read(err, 4096).decode()}
    put("facts.json", json.dumps(facts).encode())
    write(where + "/current_tracer", "nop")
    os.rmdir(where)
    tar.close()
    sys.stdout.buffer.write(tar_bytes.getvalue())


main()
