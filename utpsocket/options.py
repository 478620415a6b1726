"""Socket options: uTP's own, and what each of the others does to a uTP socket.

TCP's options are set and read as on a TCP socket; those of the level SOL_UTP, whose number is far from that of any
protocol, are uTP's own. sockets/option_calls.py carries them out. Sources: socket(7), tcp(7), ip(7), ipv6(7).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = [
    "EFFECTS",
    "SOL_UTP",
    "UTP_CONGESTION",
    "UTP_DROPS",
    "UTP_INFO",
    "UTP_KEEPALIVE",
    "UTP_MAX_MTU",
    "UTP_SHARE_PORT",
    "UTP_TARGET_DELAY",
    "Effect",
]

SOL_UTP: Final = 0x757470
"""The level of the options of uTP, for getsockopt() and setsockopt(). The number is "utp" in ASCII."""

UTP_INFO: Final = 1
"""Only getsockopt(): the statistics of the connection at this instant, a utpsocket.stats.ConnectionStats. ENOTCONN
without a connection.
"""

UTP_MAX_MTU: Final = 2
"""The largest datagram that is ever sent, an int, bytes of UDP payload, 576 to 65,507, else EINVAL. 0, the default, is
1,472 on IPv4 and 1,448 on IPv6. Set it before connect() or listen(); later it is EISCONN.
"""

UTP_CONGESTION: Final = 3
"""The name of the congestion controller, bytes: b"ledbat++", the default, b"ledbat", b"cubic" or b"reno". ENOENT for an
unknown name. It may be set at any time; what a listener accepts has the listener's. TCP_CONGESTION is the same option,
so it takes these names and no others: b"cubic" is uTP's CUBIC, and what the kernel has of its own, such as b"bbr", is
ENOENT.
"""

UTP_SHARE_PORT: Final = 4
"""1: share the UDP port with other sockets of this process that set it too, also with a listener, so that a node can
connect from the port at which it listens; 0 at first. Set it before bind(); later it is EINVAL. TCP programs use
SO_REUSEPORT for that, by which the kernel spreads a port's datagrams over several UDP sockets.

On a UDP socket, socket(AF_INET, SOCK_DGRAM): bind() takes the address of a uTP socket of this process, which is bound
before or after it. It sends from that port and receives all that is not uTP.
"""

UTP_KEEPALIVE: Final = 5
"""After how many seconds without a packet to the peer one is sent, an int, 0 to 32,767, else EINVAL; 0 for none, 29 at
first, as libutp. It keeps the mappings of NATs open. A peer that has gone is noticed by what comes back (ICMP, RESET),
or because it does not answer for eleven times as long. SO_KEEPALIVE with shorter times makes that sooner, and probes
also where this is 0. It may be set at any time.
"""

UTP_TARGET_DELAY: Final = 6
"""The queueing delay that LEDBAT and LEDBAT++ keep to, an int, µs, 1,000 to 100,000, else EINVAL; 0, the default, is
the controller's own. CUBIC and Reno have no such thing. It may be set at any time.
"""

UTP_DROPS: Final = 7
"""Only getsockopt(), of a UDP socket: how many datagrams the kernel has dropped since there was no room in its receive
buffer (SO_RCVBUF), an int, modulo 2³².
"""


class Effect(Enum):
    """What an option does to a uTP socket. In any case it is set and read as TCP's, and refused where TCP refuses it.

    Source: docs/guide/use.md §4.
    """

    PAIR = "the kernel does it on the user's fd, for C code too"
    UTP = "uTP does what TCP does, on an established connection from then on"
    PACKETS = "in each packet from then on, on an accepted socket too"
    PORT = "of the UDP port: before bind() or connect(); later only where the port is the connection's own"
    BEFORE_BIND = "of the UDP port: before bind() or connect(), later without effect"
    READ_ONLY = "only read"
    NONE = "remembered, without effect"
    # Earlier names of these two, which are the same members.
    BIRTH = BEFORE_BIND
    ANSWER = READ_ONLY


EFFECTS: Final[dict[Effect, str]] = {
    Effect.PAIR: "SO_RCVTIMEO SO_SNDTIMEO SO_RCVLOWAT SO_PEEK_OFF",
    Effect.UTP: """SO_KEEPALIVE SO_LINGER SO_RCVBUF SO_SNDBUF SO_REUSEADDR TCP_NODELAY TCP_KEEPIDLE TCP_KEEPINTVL
        TCP_KEEPCNT TCP_USER_TIMEOUT TCP_SYNCNT TCP_CONGESTION UTP_KEEPALIVE UTP_MAX_MTU UTP_CONGESTION UTP_SHARE_PORT
        UTP_TARGET_DELAY""",
    Effect.PACKETS: "IP_TOS IP_TTL IPV6_TCLASS IPV6_UNICAST_HOPS",
    Effect.PORT: "SO_PRIORITY SO_MARK SO_DONTROUTE",
    Effect.BEFORE_BIND: """SO_BINDTODEVICE SO_REUSEPORT IPV6_V6ONLY IP_TRANSPARENT IP_FREEBIND IP_OPTIONS IP_UNICAST_IF
        IP_LOCAL_PORT_RANGE IP_MULTICAST_IF IP_MULTICAST_LOOP IP_MULTICAST_TTL IP_ADD_MEMBERSHIP IP_DROP_MEMBERSHIP
        IP_ADD_SOURCE_MEMBERSHIP IP_DROP_SOURCE_MEMBERSHIP IP_BLOCK_SOURCE IP_UNBLOCK_SOURCE IP_HDRINCL IP_RECVERR
        IP_RECVOPTS IP_RETOPTS IP_RECVRETOPTS IP_RECVTOS IP_RECVTTL IP_PKTINFO IP_RECVORIGDSTADDR IPV6_DONTFRAG
        IPV6_DSTOPTS IPV6_HOPLIMIT IPV6_HOPOPTS IPV6_JOIN_GROUP IPV6_LEAVE_GROUP IPV6_MULTICAST_HOPS IPV6_MULTICAST_IF
        IPV6_MULTICAST_LOOP IPV6_NEXTHOP IPV6_PKTINFO IPV6_RECVDSTOPTS IPV6_RECVHOPLIMIT IPV6_RECVHOPOPTS
        IPV6_RECVPATHMTU IPV6_RECVPKTINFO IPV6_RECVRTHDR IPV6_RECVTCLASS IPV6_RECVERR IPV6_RTHDR IPV6_RTHDRDSTOPTS
        IPV6_CHECKSUM""",
    Effect.READ_ONLY: """SO_ACCEPTCONN SO_DOMAIN SO_ERROR SO_PROTOCOL SO_TYPE SO_SNDLOWAT SO_PEERCRED SO_PEERSEC
        TCP_INFO TCP_MAXSEG IPV6_PATHMTU UTP_INFO UTP_DROPS""",
    # A UDP socket has nothing of the kind, or the engine has its own way (MTU, checksums, the pace of acks).
    Effect.NONE: """SO_BROADCAST SO_DEBUG SO_OOBINLINE SO_INCOMING_CPU SO_PASSCRED SO_PASSSEC SO_PASSPIDFD
        SO_BINDTOIFINDEX SO_ORIGINAL_DST SO_USELOOPBACK SO_SETFIB SO_EXCLUSIVEADDRUSE SO_RTABLE SO_USER_COOKIE
        SO_HA_EMU SO_J1939_ERRQUEUE SO_J1939_FILTER SO_J1939_PROMISC SO_J1939_SEND_PRIO SO_VM_SOCKETS_BUFFER_MAX_SIZE
        SO_VM_SOCKETS_BUFFER_MIN_SIZE SO_VM_SOCKETS_BUFFER_SIZE TCP_CORK TCP_DEFER_ACCEPT TCP_FASTOPEN
        TCP_LINGER2 TCP_NOTSENT_LOWAT TCP_QUICKACK TCP_WINDOW_CLAMP TCP_MD5SIG TCP_MD5SIG_EXT TCP_THIN_LINEAR_TIMEOUTS
        TCP_THIN_DUPACK TCP_REPAIR TCP_REPAIR_QUEUE TCP_QUEUE_SEQ TCP_REPAIR_OPTIONS TCP_TIMESTAMP TCP_CC_INFO
        TCP_SAVE_SYN TCP_SAVED_SYN TCP_REPAIR_WINDOW TCP_FASTOPEN_CONNECT TCP_ULP TCP_FASTOPEN_KEY
        TCP_FASTOPEN_NO_COOKIE TCP_ZEROCOPY_RECEIVE TCP_INQ TCP_TX_DELAY TCP_KEEPALIVE TCP_CONNECTION_INFO
        IP_BIND_ADDRESS_NO_PORT""",
}
"""The names of all options by their effect, separated by blanks, of every system that CPython knows. An option without
effect promises nothing: TCP_MD5SIG signs nothing; IP_HDRINCL and the multicast options mean nothing to TCP either.
"""
