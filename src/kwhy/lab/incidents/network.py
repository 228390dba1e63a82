"""Incidents of sockets."""

from typing import Final

from kwhy.lab.incidents.model import Incident, Truth

AF_INET = "net/ipv4/af_inet.c"
AF_UNIX = "net/unix/af_unix.c"
INET_CSK = "net/ipv4/inet_connection_sock.c"

NETWORK: Final[tuple[Incident, ...]] = (
    Incident(
        "bind_inuse",
        "bind",
        "EADDRINUSE",
        (
            Truth(AF_INET, "__inet_bind", "sk->sk_prot->get_port(sk, snum)", until="5.10"),
            Truth(
                INET_CSK,
                "inet_csk_get_port",
                "inet_csk_bind_conflict(sk, tb, tb2, true, true)",
                since="6.1",
            ),
        ),
        (
            Truth(
                INET_CSK,
                "inet_csk_get_port",
                "inet_csk_bind_conflict(sk, tb, true, true)",
                until="5.10",
            ),
        ),
        named=True,
        trap="up to 5.10 get_port() answers 1 and the errno is made by its caller",
    ),
    Incident(
        "peername_notconn",
        "getpeername",
        "ENOTCONN",
        (
            Truth(
                AF_INET,
                "inet_getname",
                "!inet->inet_dport || (((1 << sk->sk_state) & (TCPF_CLOSE | TCPF_SYN_SENT)) && "
                "peer == 1)",
                atom="!inet->inet_dport",
            ),
        ),
    ),
    Incident(
        "sockopt_dom",
        "setsockopt",
        "EDOM",
        (
            Truth(
                "net/core/sock.c",
                "sock_set_timeout",
                "tv.tv_usec < 0 || tv.tv_usec >= USEC_PER_SEC",
                atom="tv.tv_usec >= USEC_PER_SEC",
            ),
        ),
        trap="two comparisons become one unsigned one: only the value tells which half failed",
    ),
    Incident(
        "sockopt_noproto",
        "setsockopt",
        "ENOPROTOOPT",
        (
            Truth("net/core/sock.c", "sock_setsockopt", "optname", until="5.10"),
            Truth("net/core/sock.c", "sk_setsockopt", "optname", since="6.1"),
        ),
        trap="the default of a big switch",
    ),
    Incident(
        "sockopt_ulp",
        "setsockopt",
        "ENOENT",
        (
            Truth(
                "net/ipv4/tcp_ulp.c",
                "tcp_ulp_find",
                "list_for_each_entry_rcu(e, &tcp_ulp_list, list, "
                "lockdep_is_held(&tcp_ulp_list_lock))",
                holds=False,
            ),
            Truth("net/ipv4/tcp_ulp.c", "tcp_set_ulp", "!ulp_ops"),
        ),
        trap="the call sleeps in its middle, until modprobe has ended",
    ),
    Incident(
        "socket_proto",
        "socket",
        "EPROTONOSUPPORT",
        (
            Truth(
                "net/ipv4/af_inet.c",
                "inet_create",
                "list_for_each_entry_rcu(answer, &inetsw[sock->type], list)",
                holds=False,
            ),
        ),
        trap="what is at the end of the loop's body runs behind the loop; the call sleeps twice",
    ),
    Incident(
        "send_pending",
        "sendto",
        "ECONNREFUSED",
        (
            Truth(
                "include/net/sock.h",
                "sock_error",
                "likely(data_race(!sk->sk_err))",
                holds=False,
            ),
        ),
        trap="the errno comes back through a pointer, and a reference is counted before the return",
    ),
    Incident(
        "shutdown_notconn",
        "shutdown",
        "ENOTCONN",
        (Truth(AF_INET, "inet_shutdown", "sk->sk_state"),),
        trap="one case of a switch makes the errno, and shares all other code with the default",
    ),
    Incident(
        "tcp_refused",
        "connect",
        "ECONNREFUSED",
        (
            Truth(AF_INET, "__inet_stream_connect", "sk->sk_state == TCP_CLOSE"),
            Truth(AF_INET, "__inet_stream_connect", "sock_error(sk)"),
            Truth(
                "include/net/sock.h",
                "sock_error",
                "likely(data_race(!sk->sk_err))",
                holds=False,
            ),
        ),
        (Truth("net/ipv4/tcp_input.c", "tcp_reset", "sk->sk_state"),),
        trap="the errno is left in the socket by the packet that came back",
    ),
    Incident(
        "unix_refused",
        "connect",
        "ECONNREFUSED",
        (
            Truth(AF_UNIX, "unix_find_other", "!u", until="5.10"),
            Truth(
                AF_UNIX,
                "unix_find_socket_byinode",
                "sk_for_each(s, &unix_socket_table[i->i_ino & (UNIX_HASH_SIZE - 1)])",
                holds=False,
                until="5.10",
            ),
            Truth(AF_UNIX, "unix_find_bsd", "!sk", since="6.1"),
            Truth(
                AF_UNIX,
                "unix_find_socket_byinode",
                "sk_for_each_bound(s, &bsd_socket_buckets[hash])",
                holds=False,
                since="6.1",
            ),
        ),
        trap="the errno is loaded before two tests; up to 5.10 it is returned through a pointer",
    ),
)
