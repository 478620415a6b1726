# Types of _native.c, which has the documentation.

def receive(fd: int, spans: list[memoryview], /) -> int: ...
def send(fd: int, views: list[memoryview], /) -> int: ...
def receive_datagram(
    fd: int, room: memoryview, ancillary_bytes: int, wants_name: bool, /
) -> tuple[int, bytes, int, bytes]: ...
def send_datagram(
    fd: int, data: bytes | bytearray, start: int, stop: int, control: bytes | None, name: bytes | None, /
) -> int: ...
def send_run(
    fd: int,
    header: bytes,
    seq: int,
    spans: list[memoryview],
    offset: int,
    payload_bytes: int,
    count: int,
    last_bytes: int,
    control: bytes | None,
    name: bytes | None,
    is_merged: bool,
    /,
) -> int: ...
def connect_pair(fd: int, name: bytes, pid: int, lowest: int, /) -> int: ...
def check_run(data: memoryview, stride: int, /) -> int: ...
def read_fields(datagram: memoryview, /) -> tuple[int, int, int, int, int, int]: ...
def compose_lone(
    connection_id: int,
    timestamp_us: int,
    difference_us: int,
    window_bytes: int,
    seq: int,
    ack: int,
    memory: memoryview,
    start: int,
    stop: int,
    /,
) -> bytes: ...
def epoll_wait(epoll_fd: int, buffer: bytearray, max_events: int, timeout_ms: int, /) -> int: ...
def epoll_ctl(epoll_fd: int, operation: int, fd: int, events: int, /) -> int: ...
def wait_readable(fd: int, other_fd: int, timeout_ms: int, /) -> int: ...
