"""How an agent is reached, and the desk's end of the conversation.

``local()``, ``over_socket(guest.open_agent())`` and ``ssh(host)`` give a :class:`Link`; all
analysis sees only that.

Operations of the agent, as ``link.call(op, **params) -> (result, data)``:

``probe``        -> {"features": {..}, "why": {feature: sentence}, "notes": [..]}; in ``hello`` too
``read_memory``  ranges=[[address, size], ..] -> {"sizes": [n | None, ..]}, the bytes concatenated
``blob``         name -> {"name", "size", "encoding"}, the bytes; FeatureError when there is none
``facts``        pid=None -> the system's facts, else the process's
``workdir``      path=None -> {"path"}; where commands start and relative files go
``put_file``     path, mode, size, offset, with ``input`` -> {"path", "written"}; see ``Link.put``
``stop``         request=None -> {"stopped": [..]}: end recordings early, in good order
``let_go``       request, tid: who was told of by "leaving", this first, may leave
``restore``      -> {"repaired": [..]}: undo what dead agents left behind

and as ``link.stream(op, **params)``, an iterator of messages that ends with kind "end":

``spawn``   argv, cwd=None, env=None, user=None, session="group"|"new"|"none", seconds=None;
            ``input``: its standard input (else /dev/null).
            "started" {pid}, "out"/"err" with data, "end" {status, timed_out}
``record``  the command as for ``spawn``, or pid; tracer="function"|"function_graph"|"nop",
            events=[..], syscalls=True, event_filters={event or probe name: condition},
            probes=[kprobe_events definitions], strict=False (True: nothing runs unless all of them
            are armed), filter=[functions], notrace=[..], graph=[..],
            options={trace option: bool}, buffer_kb (over all CPUs), clock="mono",
            seconds (then the command is killed), linger=2.0 (that descendants may outlive it),
            hold (s that the command's first process is kept at its exit, until ``stop``),
            others={seconds, nr, ret} (how long each other process or thread is, until ``let_go``:
            those in which this system call failed so; without nr and ret those in which any did and
            that end badly).
            "armed" {instance, group, tracer, probes, events, refused, page_size, pid, timings} with
            the format files as JSON data {"system/event": text}; "out", "err";
            "pages" {cpu, count, size} with whole raw pages; "exit" {status};
            "user" {pid, snapshots: [[time, tid, [[address, n], ..]], ..]} with pages of user
            memory, numbered in order: what the last failing calls of a kept process pointed to,
            when they returned; "leaving" {pid, tids, ends, born}: threads of a process stand
            at their exits (``ends``: and it with them), all of their pages have been sent;
            "drained" {status, held, ended, timed_out, lost, counts, tasks, pages, notes, kmsg}:
            every page has been sent, tracing is still being put back; ``held`` are the threads
            of the first process that stand at their exit; "end": the same and {restored, problems,
            timings}.
``status`` is {"code", "signal", "core", "exec_errno", "cpu_seconds"}.
"""

from kwhy.link.link import Link, Message, Stream
from kwhy.link.reach import guest, local, over_socket, ssh
from kwhy.link.zipapp import agent_zipapp

__all__ = ["Link", "Message", "Stream", "agent_zipapp", "guest", "local", "over_socket", "ssh"]
