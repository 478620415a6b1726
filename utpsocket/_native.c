/* What the compiled build does in C: the system calls of the data path with the GIL held, those of bind(), connect() and
   accept() on the calling thread, and the two loops over the packets of a run.

   Each function has a twin in Python, which is its specification: tests/properties/test_native.py compares the two.

       receive, send                      KeepingStream                       engine/kernel/syscalls.py
       receive_datagram, send_datagram    KeepingDatagrams                    engine/kernel/syscalls.py
       receive_datagrams                  Inbound                             engine/kernel/mmsg.py
       send_run                           compose(), then KeepingDatagrams    protocol/runs.py
       check_run                          check_run_in_python()               protocol/runs.py
       connect_pair                       _pair_at(), _fill_send_buffer()     sockets/fd_pair.py
       connect_datagram, bind_datagram    connect(), bind() and getsockname() of the socket module
       accept_pair                        accept_pair_in_python()             engine/kernel/caller_calls.py
       listen_at                          bind() and listen() of the socket module
       tagged                             tagged_in_python()                  engine/kernel/fd_names.py
       netns_cookie                       cookie_in_python()                  engine/kernel/netns.py
       write                              posix.write()
       read_fields                        read_fields_in_python()             protocol/packet.py
       compose_lone                       compose_lone_in_python()            protocol/packet.py
       join_views                         join_views_in_python()              protocol/reassembly.py
       epoll_wait                         libc.epoll_wait                     engine/interpreter/libc.py
       epoll_ctl                          epoll_ctl_in_python()               engine/kernel/poller.py
       poll_one                           polled_in_python()                  engine/kernel/poller.py
       wait_readable                      select.poll

   Rules. Nothing here keeps state between two calls, and nothing is parsed but what check_run() and
   read_fields() read. All memory
   that a call reads or writes belongs to an object that its caller holds, and every offset is compared with the object's
   size first: a wrong argument is a ValueError. No call but epoll_wait() and wait_readable() blocks, so the GIL is kept
   (docs/performance.md §9), which also means that no other thread can resize a buffer meanwhile. A call that fails
   returns the errno, negative where a count is returned otherwise; only wrong arguments and lack of memory raise, and
   connect_pair(), accept_pair() and write(), an OSError. */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    MAX_IOVECS = 1024,      /* linux/uio.h UIO_MAXIOV */
    MAX_SEND_PACKETS = 64,  /* protocol/runs.py */
    MAX_SPANS = 64,         /* pieces of a send buffer that one run lies in; by feel, a run needs 2 */
    MAX_RUN_IOVECS = 2 * MAX_SEND_PACKETS + MAX_SPANS, /* each packet a header and a payload; each span ends one more */
    MAX_RUN_PACKETS = 256,  /* protocol/runs.py */
    HEADER_BYTES = 20,      /* BEP 29 "header format" */
    VERSION = 1,            /* of a DATA packet the first byte: BEP 29 "version", "type" */
    LISTEN_BACKLOG = 16,    /* sockets/fd_pair.py */
    FILLER_BYTES = 8192,    /* sockets/fd_pair.py */
    CONTROL_BYTES = 256,    /* of ancillary data, more than any port asks for (udp.ANCILLARY_BYTES); by feel */
    NETNS_COOKIE = 71,      /* SO_NETNS_COOKIE: Linux 5.14, engine/kernel/netns.py */
    NAME_BYTES = 108,       /* sun_path: unix(7) */
    BLOCK_BYTES = 64,       /* of BLAKE2s: RFC 7693 section 2.1 */
    MAX_KEY_BYTES = 32,     /* the same */
    DIGEST_BYTES = 8,       /* engine/kernel/fd_name_key.py */
    TAG_BYTES = 11,         /* the same */
    ROOM_BYTES = 65536,     /* engine/kernel/mmsg.py */
};

/* What receive_datagrams() needs of its caller's memory for each datagram, as engine/kernel/mmsg.py has it. */
struct record {
    struct mmsghdr message;
    struct iovec pieces[2];
    char name[32];    /* its NAME_BYTES */
    char control[64]; /* its CONTROL_BYTES */
};
_Static_assert(sizeof(struct record) == 192, "NATIVE_RECORD_BYTES of engine/kernel/mmsg.py");

/* What check_run() returns, as protocol/runs.py has it. */
enum { UNIFORM = 1, CLEAN = 2, ONE_TIME = 4 };

/* ── arguments ── */

static int
wrong_count(const char *function, Py_ssize_t count, Py_ssize_t wanted)
{
    if (count == wanted)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments, not %zd", function, wanted, count);
    return -1;
}

/* A small number that is not negative; -1 with an exception. */
static Py_ssize_t
number(PyObject *object)
{
    Py_ssize_t value = PyLong_AsSsize_t(object);
    if (value < 0 && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "a negative number");
    return value < 0 ? -1 : value;
}

/* An fd; -1 with an exception. */
static int
descriptor(PyObject *object)
{
    Py_ssize_t value = number(object);
    if (value > INT_MAX) {
        PyErr_SetString(PyExc_ValueError, "no file descriptor");
        return -1;
    }
    return (int)value;
}

/* The fd of a socket object, or an fd; -1 with an exception, a ValueError for a closed socket. */
static int
descriptor_of(PyObject *object)
{
    return PyLong_Check(object) ? descriptor(object) : PyObject_AsFileDescriptor(object);
}

/* The memory of a bytes-like object, which the caller's reference keeps and nothing resizes while the GIL is held. */
static int
memory(PyObject *object, int is_writable, struct iovec *found)
{
    Py_buffer buffer;
    if (PyObject_GetBuffer(object, &buffer, is_writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0)
        return -1;
    found->iov_base = buffer.buf;
    found->iov_len = (size_t)buffer.len;
    PyBuffer_Release(&buffer);
    return 0;
}

/* As memory(), the usual case without a call: a view of bytes that lie together. */
static inline int
view_memory(PyObject *object, int is_writable, struct iovec *found)
{
#ifdef _Py_MEMORYVIEW_RELEASED
    if (PyMemoryView_Check(object)) {
        const PyMemoryViewObject *view = (PyMemoryViewObject *)object;
        if (!(view->flags & _Py_MEMORYVIEW_RELEASED) && (view->flags & _Py_MEMORYVIEW_C) &&
            !(is_writable && view->view.readonly)) {
            found->iov_base = view->view.buf;
            found->iov_len = (size_t)view->view.len;
            return 0;
        }
    }
#endif
    return memory(object, is_writable, found);
}

/* The memory of each member of a list, of the first `most` of them; how many there are, -1 with an exception. */
static Py_ssize_t
memories(PyObject *list, int is_writable, struct iovec *found, Py_ssize_t most)
{
    if (!PyList_CheckExact(list)) {
        PyErr_SetString(PyExc_TypeError, "a list is needed");
        return -1;
    }
    Py_ssize_t count = PyList_GET_SIZE(list);
    if (count > most)
        count = most;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (view_memory(PyList_GET_ITEM(list, i), is_writable, &found[i]) < 0)
            return -1;
    }
    return count;
}

/* A bytes object, or None for nothing. */
static int
bytes_or_none(PyObject *object, struct iovec *found)
{
    if (object == Py_None) {
        found->iov_base = NULL;
        found->iov_len = 0;
        return 0;
    }
    if (!PyBytes_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "bytes or None is needed");
        return -1;
    }
    found->iov_base = PyBytes_AS_STRING(object);
    found->iov_len = (size_t)PyBytes_GET_SIZE(object);
    return 0;
}

/* ── sleeping ── */

PyDoc_STRVAR(epoll_wait_doc, "epoll_wait(epoll_fd, buffer, max_events, timeout_ms) -> int\n\n\
epoll_wait(2), with the GIL released. Writes struct epoll_event into the buffer. Returns how many, or -1.\n\
It allocates nothing that the garbage collector counts: see engine/interpreter/garbage_collector.py.");

static PyObject *
wait_for_events(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (wrong_count("epoll_wait", nargs, 4) < 0)
        return NULL;
    int fd = descriptor(args[0]);
    Py_ssize_t most = fd < 0 ? -1 : number(args[2]);
    if (most < 0)
        return NULL;
    long timeout_ms = PyLong_AsLong(args[3]);
    if (timeout_ms == -1 && PyErr_Occurred())
        return NULL;
    if (timeout_ms < -1 || timeout_ms > INT_MAX) {
        PyErr_SetString(PyExc_ValueError, "no timeout");
        return NULL;
    }
    Py_buffer buffer;
    if (PyObject_GetBuffer(args[1], &buffer, PyBUF_WRITABLE) < 0)
        return NULL;
    if (!most || most > buffer.len / (Py_ssize_t)sizeof(struct epoll_event)) {
        PyBuffer_Release(&buffer);
        PyErr_SetString(PyExc_ValueError, "beyond the buffer");
        return NULL;
    }
    int count;
    Py_BEGIN_ALLOW_THREADS
    count = epoll_wait(fd, buffer.buf, (int)most, (int)timeout_ms);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&buffer);
    return PyLong_FromLong(count);
}

PyDoc_STRVAR(wait_readable_doc, "wait_readable(fd, other_fd, timeout_ms) -> int\n\n\
poll(2) of one or two descriptors for POLLIN, with the GIL released; an other_fd of -1 is none, a timeout of -1 none.\n\
Returns 1 if the first has an event, 2 if the other one has POLLIN alone, 4 if it has an error, or their sum; 0 after\n\
the timeout; a negative errno. After EINTR no signal's handler has run yet.");

static PyObject *
wait_readable(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (wrong_count("wait_readable", nargs, 3) < 0)
        return NULL;
    int fd = descriptor(args[0]);
    if (fd < 0)
        return NULL;
    long other_fd = PyLong_AsLong(args[1]);
    if (other_fd == -1 && PyErr_Occurred())
        return NULL;
    long timeout_ms = PyLong_AsLong(args[2]);
    if (timeout_ms == -1 && PyErr_Occurred())
        return NULL;
    if (other_fd < -1 || other_fd > INT_MAX || timeout_ms < -1 || timeout_ms > INT_MAX) {
        PyErr_SetString(PyExc_ValueError, "no file descriptor, or no timeout");
        return NULL;
    }
    struct pollfd fds[2] = {{.fd = fd, .events = POLLIN}, {.fd = (int)other_fd, .events = POLLIN}};
    int count, code;
    Py_BEGIN_ALLOW_THREADS
    count = poll(fds, 2, (int)timeout_ms);
    code = errno;
    Py_END_ALLOW_THREADS
    if (count < 0)
        return PyLong_FromLong(-code);
    int other = !fds[1].revents ? 0 : fds[1].revents == POLLIN ? 2 : 4;
    return PyLong_FromLong((fds[0].revents ? 1 : 0) | other);
}

/* ── streams ── */

PyDoc_STRVAR(receive_doc, "receive(fd, spans: list[memoryview]) -> int\n\n\
Read into the spans, one after the other. Returns the count, 0 at the end of file, or a negative errno.");

static PyObject *
receive(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    struct iovec spans[MAX_SPANS];
    if (wrong_count("receive", nargs, 2) < 0)
        return NULL;
    int fd = descriptor(args[0]);
    Py_ssize_t count = fd < 0 ? -1 : memories(args[1], 1, spans, MAX_SPANS);
    if (count < 0)
        return NULL;
    ssize_t received;
    if (count == 1)
        received = recv(fd, spans[0].iov_base, spans[0].iov_len, MSG_DONTWAIT);
    else {
        struct msghdr message = {.msg_iov = spans, .msg_iovlen = (size_t)count};
        received = recvmsg(fd, &message, MSG_DONTWAIT);
    }
    return PyLong_FromSsize_t(received < 0 ? -errno : received);
}

PyDoc_STRVAR(send_doc, "send(fd, views: list[memoryview]) -> int\n\n\
Write as much of the views as there is room for. Returns the count, or a negative errno.");

static PyObject *
send_views(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    struct iovec views[MAX_IOVECS];
    if (wrong_count("send", nargs, 2) < 0)
        return NULL;
    int fd = descriptor(args[0]);
    Py_ssize_t count = fd < 0 ? -1 : memories(args[1], 0, views, MAX_IOVECS);
    if (count < 0)
        return NULL;
    ssize_t sent;
    if (count == 1)
        sent = send(fd, views[0].iov_base, views[0].iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
    else {
        struct msghdr message = {.msg_iov = views, .msg_iovlen = (size_t)count};
        sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    return PyLong_FromSsize_t(sent < 0 ? -errno : sent);
}

/* ── datagrams, in ── */

/* Append an object to a list, and drop it. -1 with an exception, also where it is NULL. */
static int
append(PyObject *list, PyObject *object)
{
    if (object == NULL)
        return -1;
    int failed = PyList_Append(list, object);
    Py_DECREF(object);
    return failed;
}

/* A tuple of these objects, which it takes over; NULL if one of them is NULL. */
static PyObject *
tuple_of(PyObject **objects, Py_ssize_t count)
{
    PyObject *tuple = PyTuple_New(count);
    int is_whole = tuple != NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        is_whole = is_whole && objects[i] != NULL;
        if (tuple != NULL)
            PyTuple_SET_ITEM(tuple, i, objects[i]);
        else
            Py_XDECREF(objects[i]);
    }
    if (!is_whole)
        Py_CLEAR(tuple);
    return tuple;
}

static PyObject *
received(ssize_t size, const char *control, size_t control_bytes, int flags, const char *name, size_t name_bytes)
{
    PyObject *objects[] = {
        PyLong_FromSsize_t(size),
        PyBytes_FromStringAndSize(control, (Py_ssize_t)control_bytes),
        PyLong_FromLong(flags),
        PyBytes_FromStringAndSize(name, (Py_ssize_t)name_bytes),
    };
    return tuple_of(objects, 4);
}

PyDoc_STRVAR(receive_datagram_doc, "receive_datagram(fd, room: memoryview, ancillary_bytes: int, wants_name: bool)\n\n\
recvmsg(2). Returns (size, ancillary data, flags, source address), the second and the last as the kernel writes them;\n\
the address is empty if it is not wanted. (-errno, b'', 0, b'') if it fails.");

static PyObject *
receive_datagram(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    struct sockaddr_storage name;
    union { char bytes[CONTROL_BYTES]; struct cmsghdr aligned; } control;
    struct iovec room;
    if (wrong_count("receive_datagram", nargs, 4) < 0)
        return NULL;
    int fd = descriptor(args[0]);
    if (fd < 0 || view_memory(args[1], 1, &room) < 0)
        return NULL;
    Py_ssize_t ancillary_bytes = number(args[2]);
    if (ancillary_bytes < 0)
        return NULL;
    int wants_name = PyObject_IsTrue(args[3]);
    if (wants_name < 0)
        return NULL;
    if (ancillary_bytes > CONTROL_BYTES)
        ancillary_bytes = CONTROL_BYTES;
    memset(control.bytes, 0, (size_t)ancillary_bytes); /* the kernel leaves out what aligns */
    struct msghdr message = {
        .msg_name = wants_name ? &name : NULL,
        .msg_namelen = wants_name ? sizeof name : 0,
        .msg_iov = &room,
        .msg_iovlen = 1,
        .msg_control = ancillary_bytes ? control.bytes : NULL,
        .msg_controllen = (size_t)ancillary_bytes,
    };
    ssize_t size = recvmsg(fd, &message, MSG_DONTWAIT);
    if (size < 0)
        return received(-errno, NULL, 0, 0, NULL, 0);
    /* The kernel never writes more than it was given room for. */
    size_t control_bytes = message.msg_controllen < CONTROL_BYTES ? message.msg_controllen : CONTROL_BYTES;
    size_t name_bytes = !wants_name ? 0 : message.msg_namelen < sizeof name ? message.msg_namelen : sizeof name;
    return received(size, control.bytes, control_bytes, message.msg_flags, (char *)&name, name_bytes);
}

PyDoc_STRVAR(receive_datagrams_doc, "receive_datagrams(fd, room: memoryview, stride, max_datagrams, wants_name, \
ancillary_bytes, memory, overflow) -> int | list[tuple[int, int, int, int, bytes, bytes]]\n\n\
recvmmsg(2): each datagram into a slot of `stride` bytes, what it has no room for into 64 KiB of `overflow`. Returns\n\
groups of datagrams as engine/kernel/mmsg.py has them (Raw), or a negative errno.\n\n\
memory    NATIVE_RECORD_BYTES for each of max_datagrams; nothing in it outlasts the call");

/* The kernel tells the size of an address, which may be more than it had room for. */
static size_t
name_size(const struct msghdr *header)
{
    const size_t most = sizeof(((struct record *)0)->name);
    return header->msg_namelen < most ? header->msg_namelen : most;
}

static size_t
control_size(const struct msghdr *header)
{
    const size_t most = sizeof(((struct record *)0)->control);
    return header->msg_controllen < most ? header->msg_controllen : most;
}

/* Whether two datagrams have one source address and equal ancillary data. */
static int
are_alike(const struct msghdr *one, const struct msghdr *other)
{
    return name_size(one) == name_size(other) && control_size(one) == control_size(other) &&
           (!one->msg_namelen || !memcmp(one->msg_name, other->msg_name, name_size(one))) &&
           (!one->msg_controllen || !memcmp(one->msg_control, other->msg_control, control_size(one)));
}

static PyObject *
group_of(const struct mmsghdr *messages, Py_ssize_t first, Py_ssize_t stop)
{
    const struct msghdr *header = &messages[first].msg_hdr;
    PyObject *objects[] = {
        PyLong_FromSsize_t(first),
        PyLong_FromSsize_t(stop - first),
        PyLong_FromUnsignedLong(messages[first].msg_len),
        PyLong_FromUnsignedLong(messages[stop - 1].msg_len),
        PyBytes_FromStringAndSize(header->msg_name, (Py_ssize_t)name_size(header)),
        PyBytes_FromStringAndSize(header->msg_control, (Py_ssize_t)control_size(header)),
    };
    return tuple_of(objects, 6);
}

static PyObject *
receive_datagrams(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    struct iovec room, memory_found, overflow;
    if (wrong_count("receive_datagrams", nargs, 8) < 0)
        return NULL;
    int fd = descriptor(args[0]);
    if (fd < 0 || view_memory(args[1], 1, &room) < 0)
        return NULL;
    Py_ssize_t stride = number(args[2]), most = stride < 0 ? -1 : number(args[3]);
    int wants_name = most < 0 ? -1 : PyObject_IsTrue(args[4]);
    Py_ssize_t ancillary_bytes = wants_name < 0 ? -1 : number(args[5]);
    if (ancillary_bytes < 0 || memory(args[6], 1, &memory_found) < 0 || memory(args[7], 1, &overflow) < 0)
        return NULL;
    struct record *records = memory_found.iov_base;
    if (!stride || !most || most > MAX_RUN_PACKETS || (size_t)most > room.iov_len / (size_t)stride ||
        (size_t)most > memory_found.iov_len / sizeof *records || (size_t)most > overflow.iov_len / ROOM_BYTES ||
        (uintptr_t)records % _Alignof(struct record)) {
        PyErr_SetString(PyExc_ValueError, "beyond the room");
        return NULL;
    }
    size_t name_bytes = wants_name ? sizeof records->name : 0;
    size_t control_bytes = sizeof records->control;
    if ((size_t)ancillary_bytes < control_bytes)
        control_bytes = (size_t)ancillary_bytes;
    /* recvmmsg() wants the headers side by side, so the records begin with a column of these. */
    struct mmsghdr *messages = memory_found.iov_base;
    struct iovec *pieces = (struct iovec *)(messages + most);
    char *names = (char *)(pieces + 2 * most), *controls = names + most * (Py_ssize_t)sizeof records->name;
    if (control_bytes)
        memset(controls, 0, (size_t)most * sizeof records->control); /* the kernel leaves out what aligns */
    for (Py_ssize_t i = 0; i < most; i++) {
        pieces[2 * i] = (struct iovec){(char *)room.iov_base + i * stride, (size_t)stride};
        pieces[2 * i + 1] = (struct iovec){(char *)overflow.iov_base + i * ROOM_BYTES, ROOM_BYTES};
        messages[i] = (struct mmsghdr){.msg_hdr = {
            .msg_name = name_bytes ? names + i * (Py_ssize_t)sizeof records->name : NULL,
            .msg_namelen = (socklen_t)name_bytes,
            .msg_iov = &pieces[2 * i],
            .msg_iovlen = 2,
            .msg_control = control_bytes ? controls + i * (Py_ssize_t)sizeof records->control : NULL,
            .msg_controllen = control_bytes,
        }};
    }
    int count = recvmmsg(fd, messages, (unsigned)most, MSG_DONTWAIT, NULL);
    if (count < 0)
        return PyLong_FromLong(-errno);
    PyObject *groups = PyList_New(0);
    Py_ssize_t first = 0;
    for (Py_ssize_t i = 1; groups != NULL && i <= count; i++) {
        if (i < count && messages[i].msg_len && messages[i].msg_len <= messages[first].msg_len &&
            messages[i - 1].msg_len >= messages[first].msg_len &&
            are_alike(&messages[i].msg_hdr, &messages[i - 1].msg_hdr))
            continue;
        if (append(groups, group_of(messages, first, i)) < 0)
            Py_CLEAR(groups);
        first = i;
    }
    return groups;
}

/* ── datagrams, out ── */

PyDoc_STRVAR(send_datagram_doc, "send_datagram(fd, data, start, stop, control: bytes | None, name: bytes | None) -> int\n\n\
Send data[start:stop] by one sendmsg(2), with this ancillary data, to this address, both as the kernel reads them.\n\
Returns 0 or the errno.");

static PyObject *
send_datagram(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    struct iovec data, control, name;
    if (wrong_count("send_datagram", nargs, 6) < 0)
        return NULL;
    int fd = descriptor(args[0]);
    if (fd < 0 || memory(args[1], 0, &data) < 0)
        return NULL;
    Py_ssize_t start = number(args[2]), stop = start < 0 ? -1 : number(args[3]);
    if (stop < 0 || bytes_or_none(args[4], &control) < 0 || bytes_or_none(args[5], &name) < 0)
        return NULL;
    if (start > stop || (size_t)stop > data.iov_len) {
        PyErr_SetString(PyExc_ValueError, "beyond the data");
        return NULL;
    }
    data.iov_base = (char *)data.iov_base + start;
    data.iov_len = (size_t)(stop - start);
    ssize_t sent;
    if (control.iov_len || name.iov_len) {
        struct msghdr message = {
            .msg_name = name.iov_base,
            .msg_namelen = (socklen_t)name.iov_len,
            .msg_iov = &data,
            .msg_iovlen = 1,
            .msg_control = control.iov_base,
            .msg_controllen = control.iov_len,
        };
        sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    else
        sent = send(fd, data.iov_base, data.iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
    return PyLong_FromLong(sent < 0 ? errno : 0);
}

/* Write a sequence number into a header: BEP 29 "seq_nr". */
static void
put_seq(unsigned char *header, unsigned long seq)
{
    header[16] = (unsigned char)(seq >> 8);
    header[17] = (unsigned char)seq;
}

PyDoc_STRVAR(send_run_doc, "send_run(fd, header, seq, spans, offset, payload_bytes, count, last_bytes, control, name, \
is_merged) -> int\n\n\
Send `count` packets: each a copy of the header with the next sequence number, and the next payload_bytes of the spans,\n\
the last packet last_bytes of them. The spans are one memory in pieces, and the first payload begins `offset` bytes into\n\
it. The payload is not copied by us. is_merged: by one sendmsg(2), whose ancillary data must have UDP_SEGMENT; else by\n\
sendmmsg(2). Returns how many packets have left, or a negative errno if none has.");

static PyObject *
send_run(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    struct iovec control, name, spans[MAX_SPANS], pieces[MAX_RUN_IOVECS];
    struct mmsghdr messages[MAX_SEND_PACKETS];
    unsigned char headers[MAX_SEND_PACKETS][HEADER_BYTES];
    if (wrong_count("send_run", nargs, 11) < 0)
        return NULL;
    int fd = descriptor(args[0]);
    if (fd < 0)
        return NULL;
    if (!PyBytes_Check(args[1]) || PyBytes_GET_SIZE(args[1]) != HEADER_BYTES) {
        PyErr_SetString(PyExc_ValueError, "no header");
        return NULL;
    }
    unsigned long seq = PyLong_AsUnsignedLongMask(args[2]);
    if (seq == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    Py_ssize_t span_count = memories(args[3], 0, spans, MAX_SPANS);
    if (span_count < 0)
        return NULL;
    Py_ssize_t offset = number(args[4]), payload_bytes = offset < 0 ? -1 : number(args[5]);
    Py_ssize_t count = payload_bytes < 0 ? -1 : number(args[6]), last_bytes = count < 0 ? -1 : number(args[7]);
    if (last_bytes < 0 || bytes_or_none(args[8], &control) < 0 || bytes_or_none(args[9], &name) < 0)
        return NULL;
    int is_merged = PyObject_IsTrue(args[10]);
    if (is_merged < 0)
        return NULL;
    if (!count || count > MAX_SEND_PACKETS) {
        PyErr_SetString(PyExc_ValueError, "too many packets, or none");
        return NULL;
    }
    Py_ssize_t span = 0, piece = 0;
    size_t at = (size_t)offset;  /* within spans[span] */
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_ssize_t first = piece;
        memcpy(headers[i], PyBytes_AS_STRING(args[1]), HEADER_BYTES);
        put_seq(headers[i], seq + (unsigned long)i);
        pieces[piece++] = (struct iovec){headers[i], HEADER_BYTES};
        size_t left = (size_t)(i + 1 < count ? payload_bytes : last_bytes);
        while (left) {
            while (span < span_count && at >= spans[span].iov_len)
                at -= spans[span++].iov_len;
            if (span == span_count) {
                PyErr_SetString(PyExc_ValueError, "beyond the spans");
                return NULL;
            }
            size_t size = spans[span].iov_len - at;
            if (size > left)
                size = left;
            /* Cannot be more: each span has one end, and what ends elsewhere ends a payload. */
            if (piece == MAX_RUN_IOVECS) {
                PyErr_SetString(PyExc_ValueError, "too many pieces");
                return NULL;
            }
            pieces[piece++] = (struct iovec){(char *)spans[span].iov_base + at, size};
            at += size;
            left -= size;
        }
        if (!is_merged)
            messages[i].msg_hdr = (struct msghdr){
                .msg_name = name.iov_base,
                .msg_namelen = (socklen_t)name.iov_len,
                .msg_iov = &pieces[first],
                .msg_iovlen = (size_t)(piece - first),
                .msg_control = control.iov_base,
                .msg_controllen = control.iov_len,
            };
    }
    if (!is_merged) {
        int sent = sendmmsg(fd, messages, (unsigned)count, MSG_DONTWAIT | MSG_NOSIGNAL);
        return PyLong_FromLong(sent < 0 ? -errno : sent);
    }
    struct msghdr message = {
        .msg_name = name.iov_base,
        .msg_namelen = (socklen_t)name.iov_len,
        .msg_iov = pieces,
        .msg_iovlen = (size_t)piece,
        .msg_control = control.iov_base,
        .msg_controllen = control.iov_len,
    };
    ssize_t sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    return PyLong_FromSsize_t(sent < 0 ? -errno : count);
}

/* ── headers ── */

PyDoc_STRVAR(check_run_doc, "check_run(data, stride: int) -> int\n\n\
What the headers of the datagrams in `data`, one every `stride` bytes, have in common. See protocol/runs.py.");

static PyObject *
check_run(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    struct iovec data;
    if (wrong_count("check_run", nargs, 2) < 0 || memory(args[0], 0, &data) < 0)
        return NULL;
    Py_ssize_t stride = number(args[1]);
    if (stride < 0)
        return NULL;
    if (!stride) {
        PyErr_SetString(PyExc_ValueError, "no stride");
        return NULL;
    }
    size_t length = data.iov_len, step = (size_t)stride;
    if (!length || step % 8 || step < HEADER_BYTES || (length - 1) % step + 1 < HEADER_BYTES)
        return PyLong_FromLong(0);
    const unsigned char *first = data.iov_base;
    int found = UNIFORM | CLEAN | ONE_TIME;
    if (first[0] != VERSION || first[1] || (length - 1) / step >= MAX_RUN_PACKETS)
        found &= ~CLEAN;
    unsigned seq = (unsigned)first[16] << 8 | first[17];
    for (size_t at = step; at < length; at += step) {
        const unsigned char *header = first + at;
        if (memcmp(header, first, 4))
            return PyLong_FromLong(0);
        seq = (seq + 1) & 0xFFFF;
        if (memcmp(header + 4, first + 4, 4)) {
            found &= ~ONE_TIME;
            /* No time: the packets cannot all be treated alike. */
            if (!(header[4] | header[5] | header[6] | header[7]) || !(first[4] | first[5] | first[6] | first[7]))
                found &= ~CLEAN;
        }
        if (memcmp(header + 8, first + 8, 8) || header[16] != seq >> 8 || header[17] != (seq & 0xFF) ||
            memcmp(header + 18, first + 18, 2))
            found &= ~CLEAN;
    }
    return PyLong_FromLong(found);
}

/* ── pairs ── */

PyDoc_STRVAR(connect_pair_doc, "connect_pair(fd, name: bytes, pid, lowest, found: list) -> int\n\n\
Connect an AF_UNIX socket to a listening one that is made for this moment, accept the connection, and fill the send\n\
buffer of the first, of the least size. Returns the other end, non-blocking, under a number from `lowest` on. Raises\n\
OSError; the socket is not connected then, but for EMFILE and what fails after that.\n\n\
name    abstract, of the other end\n\
pid     of the calling process: what others have connected to the name is closed\n\
found   how many bytes the buffer took is appended to it");

static const char filler[FILLER_BYTES];

/* Whether it is a list, or an exception is set. */
static int
is_list(PyObject *object)
{
    if (PyList_CheckExact(object))
        return 1;
    PyErr_SetString(PyExc_TypeError, "a list is needed");
    return 0;
}

/* An abstract name as the kernel reads it. Returns its size; 0 with an exception. */
static socklen_t
abstract_name(PyObject *object, struct sockaddr_un *address)
{
    struct iovec name;
    if (bytes_or_none(object, &name) < 0)
        return 0;
    if (name.iov_len < 2 || name.iov_len > sizeof address->sun_path || *(const char *)name.iov_base != '\0') {
        PyErr_SetString(PyExc_ValueError, "no abstract name");
        return 0;
    }
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path, name.iov_base, name.iov_len);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + name.iov_len);
}

PyDoc_STRVAR(listen_at_doc, "listen_at(fd, name: bytes, backlog) -> int\n\n\
bind(2) of an AF_UNIX socket to an abstract name, and listen(2). Returns 0 or the errno.");

static PyObject *
listen_at(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    struct sockaddr_un address;
    if (wrong_count("listen_at", nargs, 3) < 0)
        return NULL;
    int fd = descriptor(args[0]);
    socklen_t size = fd < 0 ? 0 : abstract_name(args[1], &address);
    int backlog = size ? descriptor(args[2]) : -1;
    if (backlog < 0)
        return NULL;
    int failed = bind(fd, (struct sockaddr *)&address, size) < 0 || listen(fd, backlog) < 0;
    return PyLong_FromLong(failed ? errno : 0);
}

/* The connection that this process has made; -1. */
static int
accept_own(int listening, pid_t pid)
{
    for (;;) {
        struct ucred credentials;
        socklen_t size = sizeof credentials;
        int accepted = accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (accepted < 0)
            return -1;
        if (getsockopt(accepted, SOL_SOCKET, SO_PEERCRED, &credentials, &size) == 0 && credentials.pid == pid)
            return accepted;
        close(accepted);
    }
}

/* connect(2) without waiting for room in the queue, of a socket that may block. */
static int
connect_at_once(int fd, const struct sockaddr_un *address, socklen_t size)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return -1;
    if (flags & O_NONBLOCK)
        return connect(fd, (const struct sockaddr *)address, size);
    if (fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -1;
    int failed = connect(fd, (const struct sockaddr *)address, size);
    int code = errno;
    fcntl(fd, F_SETFL, flags);
    errno = code;
    return failed;
}

static PyObject *
connect_pair(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    struct sockaddr_un address;
    if (wrong_count("connect_pair", nargs, 5) < 0)
        return NULL;
    int fd = descriptor(args[0]);
    socklen_t size = fd < 0 ? 0 : abstract_name(args[1], &address);
    if (!size)
        return NULL;
    Py_ssize_t pid = number(args[2]);
    int lowest = pid < 0 ? -1 : descriptor(args[3]);
    if (lowest < 0 || !is_list(args[4]))
        return NULL;
    int result = -1;
    int reserved = -1;
    int least = 0;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &least, sizeof least);
    int listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listening < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    /* The number is taken before the sockets are connected, since what fails afterwards cannot be undone. */
    if (bind(listening, (struct sockaddr *)&address, size) == 0 && listen(listening, LISTEN_BACKLOG) == 0 &&
        (reserved = fcntl(listening, F_DUPFD_CLOEXEC, lowest)) >= 0 && connect_at_once(fd, &address, size) == 0) {
        int accepted = accept_own(listening, (pid_t)pid);
        if (accepted < 0) {
            close(reserved); /* the program's last number was taken meanwhile: this one is as good */
            reserved = -1;
            result = accept_own(listening, (pid_t)pid);
        }
        else {
            result = dup3(accepted, reserved, O_CLOEXEC);
            if (result >= 0)
                reserved = -1;
            close(accepted);
        }
    }
    ssize_t filled = 0;
    if (result >= 0) {
        filled = send(fd, filler, sizeof filler, MSG_DONTWAIT | MSG_NOSIGNAL);
        /* EPIPE: shut down before it was connected. It needs no gate, since nothing can be sent. */
        if (filled < 0 && errno != EPIPE) {
            int code = errno;
            close(result);
            result = -1;
            errno = code;
        }
    }
    int code = errno;
    if (reserved >= 0)
        close(reserved);
    close(listening);
    if (result < 0) {
        errno = code;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    if (append(args[4], PyLong_FromSsize_t(filled < 0 ? 0 : filled)) < 0) {
        close(result);
        return NULL;
    }
    return PyLong_FromLong(result);
}

PyDoc_STRVAR(accept_pair_doc, "accept_pair(fd, send_buffer_bytes, found: list) -> int\n\n\
Accept a connection of a listening AF_UNIX socket that does not block. Returns its fd, or -1 for a socket that may block,\n\
of which nothing is accepted. Raises OSError.\n\n\
send_buffer_bytes   SO_SNDBUF of the new socket\n\
found               (abstract name of the other end, b\"\" for none; inode; id of the process that has made the other\n\
                    end, 0 where that is not known) is appended to it");

static PyObject *
accept_pair(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (wrong_count("accept_pair", nargs, 3) < 0)
        return NULL;
    int fd = descriptor(args[0]);
    int send_buffer_bytes = fd < 0 ? -1 : descriptor(args[1]);
    if (send_buffer_bytes < 0 || !is_list(args[2]))
        return NULL;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (!(flags & O_NONBLOCK))
        return PyLong_FromLong(-1);
    int accepted = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    if (accepted < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    struct sockaddr_un name;
    struct stat status;
    socklen_t size = sizeof name;
    if (fstat(accepted, &status) < 0 ||
        setsockopt(accepted, SOL_SOCKET, SO_SNDBUF, &send_buffer_bytes, sizeof send_buffer_bytes) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        close(accepted);
        return NULL;
    }
    size_t path_bytes = 0;
    if (getpeername(accepted, (struct sockaddr *)&name, &size) == 0 && name.sun_family == AF_UNIX &&
        size > offsetof(struct sockaddr_un, sun_path) && size <= sizeof name && name.sun_path[0] == '\0')
        path_bytes = size - offsetof(struct sockaddr_un, sun_path);
    struct ucred maker;
    socklen_t maker_size = sizeof maker;
    if (getsockopt(accepted, SOL_SOCKET, SO_PEERCRED, &maker, &maker_size) < 0 || maker_size != sizeof maker)
        maker.pid = 0;
    PyObject *objects[] = {
        PyBytes_FromStringAndSize(name.sun_path, (Py_ssize_t)path_bytes),
        PyLong_FromUnsignedLongLong(status.st_ino),
        PyLong_FromLong(maker.pid),
    };
    if (append(args[2], tuple_of(objects, 3)) < 0) {
        close(accepted);
        return NULL;
    }
    return PyLong_FromLong(accepted);
}

PyDoc_STRVAR(netns_cookie_doc, "netns_cookie(sock) -> int\n\n\
SO_NETNS_COOKIE of a socket; 0 where that fails. See engine/kernel/netns.py.");

static PyObject *
netns_cookie(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (wrong_count("netns_cookie", nargs, 1) < 0)
        return NULL;
    int fd = descriptor_of(args[0]);
    if (fd < 0) {
        if (!PyErr_ExceptionMatches(PyExc_ValueError)) /* closed */
            return NULL;
        PyErr_Clear();
        return PyLong_FromLong(0);
    }
    uint64_t cookie;
    socklen_t size = sizeof cookie;
    if (getsockopt(fd, SOL_SOCKET, NETNS_COOKIE, &cookie, &size) < 0 || size != sizeof cookie)
        cookie = 0;
    return PyLong_FromUnsignedLongLong(cookie);
}

/* ── the tags in names ── */

static inline uint32_t
rotated(uint32_t word, int bits)
{
    return word >> bits | word << (32 - bits);
}

static inline void
write_little_endian(unsigned char *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (unsigned char)(value >> 8 * i);
}

/* RFC 7693 section 3.1, "Mixing Function G" */
static inline void
blake2s_mix(uint32_t *v, int a, int b, int c, int d, uint32_t x, uint32_t y)
{
    v[a] += v[b] + x;
    v[d] = rotated(v[d] ^ v[a], 16);
    v[c] += v[d];
    v[b] = rotated(v[b] ^ v[c], 12);
    v[a] += v[b] + y;
    v[d] = rotated(v[d] ^ v[a], 8);
    v[c] += v[d];
    v[b] = rotated(v[b] ^ v[c], 7);
}

/* RFC 7693 section 2.6, "Initialization Vector", and 2.7, "Message Schedule SIGMA" */
static const uint32_t blake2s_iv[8] = {
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
};
static const unsigned char blake2s_sigma[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
    {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
    {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
    {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
    {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

/* RFC 7693 section 3.2, "Compression Function F" */
static void
blake2s_compress(uint32_t *state, const unsigned char *block, uint32_t count, int is_last)
{
    uint32_t v[16], words[16];
    for (int i = 0; i < 16; i++)
        words[i] = block[4 * i] | (uint32_t)block[4 * i + 1] << 8 | (uint32_t)block[4 * i + 2] << 16 |
                   (uint32_t)block[4 * i + 3] << 24;
    memcpy(v, state, 8 * sizeof *v);
    memcpy(v + 8, blake2s_iv, 8 * sizeof *v);
    v[12] ^= count;
    if (is_last)
        v[14] = ~v[14];
    for (int round = 0; round < 10; round++) {
        const unsigned char *order = blake2s_sigma[round];
        blake2s_mix(v, 0, 4, 8, 12, words[order[0]], words[order[1]]);
        blake2s_mix(v, 1, 5, 9, 13, words[order[2]], words[order[3]]);
        blake2s_mix(v, 2, 6, 10, 14, words[order[4]], words[order[5]]);
        blake2s_mix(v, 3, 7, 11, 15, words[order[6]], words[order[7]]);
        blake2s_mix(v, 0, 5, 10, 15, words[order[8]], words[order[9]]);
        blake2s_mix(v, 1, 6, 11, 12, words[order[10]], words[order[11]]);
        blake2s_mix(v, 2, 7, 8, 13, words[order[12]], words[order[13]]);
        blake2s_mix(v, 3, 4, 9, 14, words[order[14]], words[order[15]]);
    }
    for (int i = 0; i < 8; i++)
        state[i] ^= v[i] ^ v[i + 8];
}

PyDoc_STRVAR(tagged_doc, "tagged(key: bytes, name: bytes, uid) -> bytes\n\n\
The name, \"#\" and its tag for this user id: keyed BLAKE2s. The key has 1 to 32 bytes, the name at most 108. See\n\
engine/kernel/fd_names.py.");

static PyObject *
tagged(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    struct iovec key, name;
    if (wrong_count("tagged", nargs, 3) < 0)
        return NULL;
    if (!PyBytes_Check(args[0]) || !PyBytes_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "bytes are needed");
        return NULL;
    }
    Py_ssize_t uid = number(args[2]);
    if (uid < 0 || bytes_or_none(args[0], &key) < 0 || bytes_or_none(args[1], &name) < 0)
        return NULL;
    if (!key.iov_len || key.iov_len > MAX_KEY_BYTES || name.iov_len > NAME_BYTES || uid > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "no such key, name, or user id");
        return NULL;
    }
    /* The key is a block of its own; then come the user id, a colon and the name. */
    unsigned char message[4 * BLOCK_BYTES] = {0};
    memcpy(message, key.iov_base, key.iov_len);
    size_t size = BLOCK_BYTES;
    size += (size_t)sprintf((char *)message + size, "%lu:", (unsigned long)uid);
    memcpy(message + size, name.iov_base, name.iov_len);
    size += name.iov_len;
    uint32_t state[8];
    memcpy(state, blake2s_iv, sizeof state);
    state[0] ^= 0x01010000 ^ (uint32_t)key.iov_len << 8 ^ DIGEST_BYTES;
    for (size_t at = 0; at < size; at += BLOCK_BYTES) {
        int is_last = size - at <= BLOCK_BYTES;
        blake2s_compress(state, message + at, (uint32_t)(is_last ? size : at + BLOCK_BYTES), is_last);
    }
    unsigned char digest[DIGEST_BYTES + 1];
    write_little_endian(digest, state[0]);
    write_little_endian(digest + 4, state[1]);
    digest[DIGEST_BYTES] = 0; /* for the last digit */
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)name.iov_len + 1 + TAG_BYTES);
    if (result == NULL)
        return NULL;
    char *out = PyBytes_AS_STRING(result);
    memcpy(out, name.iov_base, name.iov_len);
    out += name.iov_len;
    *out++ = '#';
    for (int i = 0; i < TAG_BYTES; i++) {
        /* The i-th six bits, the first first. */
        int bit = 6 * i, two_bytes = digest[bit / 8] << 8 | digest[bit / 8 + 1];
        out[i] = digits[two_bytes >> (10 - bit % 8) & 63];
    }
    return result;
}

/* ── UDP sockets of bind() and connect() ── */

union name {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

/* The address as a program has given it, if it is plain: a numeric host and a port, for IPv6 perhaps two zeros. Returns
   its size; 0 for any other. */
static socklen_t
plain_address(int family, PyObject *address, union name *found)
{
    if (!PyTuple_CheckExact(address))
        return 0;
    Py_ssize_t count = PyTuple_GET_SIZE(address);
    if (count != 2 && !(count == 4 && family == AF_INET6))
        return 0;
    long numbers[3] = {0, 0, 0};
    for (Py_ssize_t i = 1; i < count; i++) {
        PyObject *number = PyTuple_GET_ITEM(address, i);
        int overflow;
        if (!PyLong_CheckExact(number))
            return 0;
        numbers[i - 1] = PyLong_AsLongAndOverflow(number, &overflow);
        if (overflow)
            return 0;
    }
    if (numbers[0] < 0 || numbers[0] > 0xFFFF || numbers[1] || numbers[2])
        return 0;
    PyObject *host = PyTuple_GET_ITEM(address, 0);
    if (!PyUnicode_CheckExact(host) || !PyUnicode_IS_ASCII(host))
        return 0;
    Py_ssize_t length;
    const char *text = PyUnicode_AsUTF8AndSize(host, &length);
    if (text == NULL) {
        PyErr_Clear();
        return 0;
    }
    if (strlen(text) != (size_t)length)
        return 0;
    memset(found, 0, sizeof *found);
    found->any.sa_family = (sa_family_t)family;
    if (family == AF_INET) {
        found->v4.sin_port = htons((uint16_t)numbers[0]);
        return inet_pton(AF_INET, text, &found->v4.sin_addr) == 1 ? sizeof found->v4 : 0;
    }
    found->v6.sin6_port = htons((uint16_t)numbers[0]);
    return inet_pton(AF_INET6, text, &found->v6.sin6_addr) == 1 ? sizeof found->v6 : 0;
}

/* As the socket module writes it. */
static PyObject *
address_of(const union name *name)
{
    char text[INET6_ADDRSTRLEN];
    if (name->any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &name->v4.sin_addr, text, sizeof text);
        PyObject *objects[] = {PyUnicode_FromString(text), PyLong_FromLong(ntohs(name->v4.sin_port))};
        return tuple_of(objects, 2);
    }
    inet_ntop(AF_INET6, &name->v6.sin6_addr, text, sizeof text);
    PyObject *objects[] = {
        PyUnicode_FromString(text),
        PyLong_FromLong(ntohs(name->v6.sin6_port)),
        PyLong_FromUnsignedLong(ntohl(name->v6.sin6_flowinfo)),
        PyLong_FromUnsignedLong(name->v6.sin6_scope_id),
    };
    return tuple_of(objects, 4);
}

/* The arguments of the next two: a socket object, AF_INET or AF_INET6, an address. The audit event is raised here, before
   the call, as by the socket module. -1 with an exception; 0 for no plain address. */
static int
udp_arguments(const char *function, const char *event, PyObject *const *args, Py_ssize_t nargs, int *fd,
              union name *name)
{
    if (wrong_count(function, nargs, 3) < 0 || (*fd = descriptor_of(args[0])) < 0)
        return -1;
    Py_ssize_t family = number(args[1]);
    if (family < 0)
        return -1;
    if (family != AF_INET && family != AF_INET6) {
        PyErr_SetString(PyExc_ValueError, "neither AF_INET nor AF_INET6");
        return -1;
    }
    int given = (int)plain_address((int)family, args[2], name);
    return given > 0 && PySys_Audit(event, "OO", args[0], args[2]) < 0 ? -1 : given;
}

static int
is_name_of(const union name *name, socklen_t size)
{
    return (name->any.sa_family == AF_INET && size == sizeof name->v4) ||
           (name->any.sa_family == AF_INET6 && size == sizeof name->v6);
}

PyDoc_STRVAR(connect_datagram_doc, "connect_datagram(sock, family, address) -> tuple[Address, Address] | int | None\n\n\
Connect a UDP socket to a plain address: a numeric host and a port, for IPv6 perhaps two zeros. Returns the addresses of\n\
the other end and of this one as the kernel has them; the errno where that fails; 0 where it is connected and there is no\n\
such address, as with port 0; None where the address is another one, which the socket module understands. The audit event\n\
has been raised unless it is None.");

static PyObject *
connect_datagram(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    union name name, own;
    int fd;
    int given = udp_arguments("connect_datagram", "socket.connect", args, nargs, &fd, &name);
    if (given < 0)
        return NULL;
    if (!given)
        Py_RETURN_NONE;
    if (connect(fd, &name.any, (socklen_t)given) < 0)
        return PyLong_FromLong(errno);
    socklen_t size = sizeof name, own_size = sizeof own;
    if (getpeername(fd, &name.any, &size) < 0 || getsockname(fd, &own.any, &own_size) < 0 || !is_name_of(&name, size) ||
        !is_name_of(&own, own_size))
        return PyLong_FromLong(0);
    PyObject *objects[] = {address_of(&name), address_of(&own)};
    return tuple_of(objects, 2);
}

PyDoc_STRVAR(bind_datagram_doc, "bind_datagram(sock, family, address) -> Address | int | None\n\n\
Bind a UDP socket to a plain address. Returns the address as the kernel has it, or what connect_datagram() does.");

static PyObject *
bind_datagram(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    union name name;
    int fd;
    int given = udp_arguments("bind_datagram", "socket.bind", args, nargs, &fd, &name);
    if (given < 0)
        return NULL;
    if (!given)
        Py_RETURN_NONE;
    if (bind(fd, &name.any, (socklen_t)given) < 0)
        return PyLong_FromLong(errno);
    socklen_t size = sizeof name;
    if (getsockname(fd, &name.any, &size) < 0 || !is_name_of(&name, size))
        return PyLong_FromLong(0);
    return address_of(&name);
}

/* ── what wakes the engine, and what it waits for ── */

PyDoc_STRVAR(epoll_ctl_doc, "epoll_ctl(epoll_fd, operation, fd, events) -> int\n\n\
The errno, 0 for none. See engine/kernel/poller.py.");

static PyObject *
control_epoll(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (wrong_count("epoll_ctl", nargs, 4) < 0)
        return NULL;
    int epoll_fd = descriptor(args[0]), fd = epoll_fd < 0 ? -1 : descriptor(args[2]);
    Py_ssize_t operation = fd < 0 ? -1 : number(args[1]), events = operation < 0 ? -1 : number(args[3]);
    if (events < 0)
        return NULL;
    if (operation > INT_MAX || events > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "no operation, or no events");
        return NULL;
    }
    struct epoll_event event = {.events = (uint32_t)events};
    event.data.fd = fd;
    return PyLong_FromLong(epoll_ctl(epoll_fd, (int)operation, fd, &event) < 0 ? errno : 0);
}

PyDoc_STRVAR(write_doc, "write(fd, data: bytes) -> int\n\n\
write(2) of an fd that does not block. Returns the count. Raises OSError.");

static PyObject *
write_bytes(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    struct iovec data;
    if (wrong_count("write", nargs, 2) < 0)
        return NULL;
    int fd = descriptor(args[0]);
    if (fd < 0 || view_memory(args[1], 0, &data) < 0)
        return NULL;
    ssize_t written = write(fd, data.iov_base, data.iov_len);
    return written < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromSsize_t(written);
}

PyDoc_STRVAR(poll_one_doc, "poll_one(fd, events) -> int\n\n\
What poll(2) finds at once, or a negative errno. See engine/kernel/poller.py.");

static PyObject *
poll_one(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (wrong_count("poll_one", nargs, 2) < 0)
        return NULL;
    int fd = descriptor(args[0]);
    Py_ssize_t events = fd < 0 ? -1 : number(args[1]);
    if (events < 0)
        return NULL;
    if (events > INT16_MAX) {
        PyErr_SetString(PyExc_ValueError, "no events");
        return NULL;
    }
    struct pollfd entry = {.fd = fd, .events = (short)events};
    return PyLong_FromLong(poll(&entry, 1, 0) < 0 ? -errno : (unsigned short)entry.revents);
}

static uint32_t
read_uint32(const unsigned char *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void
write_uint32(unsigned char *at, unsigned long long value)
{
    at[0] = (unsigned char)(value >> 24);
    at[1] = (unsigned char)(value >> 16);
    at[2] = (unsigned char)(value >> 8);
    at[3] = (unsigned char)value;
}

PyDoc_STRVAR(read_fields_doc, "read_fields(datagram) -> tuple[int, ...]\n\n\
The fields of the header that it begins with. See protocol/packet.py.");

static PyObject *
read_fields(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    struct iovec data;
    if (wrong_count("read_fields", nargs, 1) < 0 || view_memory(args[0], 0, &data) < 0)
        return NULL;
    if (data.iov_len < HEADER_BYTES) {
        PyErr_SetString(PyExc_ValueError, "no header");
        return NULL;
    }
    const unsigned char *header = data.iov_base;
    PyObject *objects[] = {
        PyLong_FromLong(header[2] << 8 | header[3]),
        PyLong_FromUnsignedLong(read_uint32(header + 4)),
        PyLong_FromUnsignedLong(read_uint32(header + 8)),
        PyLong_FromUnsignedLong(read_uint32(header + 12)),
        PyLong_FromLong(header[16] << 8 | header[17]),
        PyLong_FromLong(header[18] << 8 | header[19]),
    };
    return tuple_of(objects, 6);
}

PyDoc_STRVAR(compose_lone_doc, "compose_lone(connection_id, timestamp_us, difference_us, window_bytes, seq, ack, memory, \
start, stop) -> bytes\n\n\
A DATA packet with the payload memory[start:stop]. See protocol/packet.py.");

static PyObject *
compose_lone(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    struct iovec data;
    unsigned long long numbers[6];
    if (wrong_count("compose_lone", nargs, 9) < 0)
        return NULL;
    for (int i = 0; i < 6; i++) {
        numbers[i] = PyLong_AsUnsignedLongLongMask(args[i]);
        if (numbers[i] == (unsigned long long)-1 && PyErr_Occurred())
            return NULL;
    }
    if (numbers[0] > 0xFFFF) {
        PyErr_SetString(PyExc_ValueError, "no connection id");
        return NULL;
    }
    Py_ssize_t start = number(args[7]), stop = start < 0 ? -1 : number(args[8]);
    if (stop < 0 || view_memory(args[6], 0, &data) < 0)
        return NULL;
    if (start > stop || (size_t)stop > data.iov_len) {
        PyErr_SetString(PyExc_ValueError, "beyond the memory");
        return NULL;
    }
    PyObject *datagram = PyBytes_FromStringAndSize(NULL, HEADER_BYTES + stop - start);
    if (datagram == NULL)
        return NULL;
    unsigned char *header = (unsigned char *)PyBytes_AS_STRING(datagram);
    header[0] = VERSION;
    header[1] = 0;
    header[2] = (unsigned char)(numbers[0] >> 8);
    header[3] = (unsigned char)numbers[0];
    write_uint32(header + 4, numbers[1]);
    write_uint32(header + 8, numbers[2]);
    write_uint32(header + 12, numbers[3] < 0xFFFFFFFF ? numbers[3] : 0xFFFFFFFF);
    put_seq(header, (unsigned long)numbers[4]);
    header[18] = (unsigned char)(numbers[5] >> 8);
    header[19] = (unsigned char)numbers[5];
    memcpy(header + HEADER_BYTES, (char *)data.iov_base + start, (size_t)(stop - start));
    return datagram;
}

PyDoc_STRVAR(join_views_doc, "join_views(views: list[memoryview]) -> bytes\n\n\
The content of all of them, one after the other. See protocol/reassembly.py.");

static PyObject *
join_views(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    struct iovec found;
    if (wrong_count("join_views", nargs, 1) < 0)
        return NULL;
    if (!PyList_CheckExact(args[0])) {
        PyErr_SetString(PyExc_TypeError, "a list is needed");
        return NULL;
    }
    /* Views only: nothing is called that could change the list or their sizes between the two loops. */
    Py_ssize_t count = PyList_GET_SIZE(args[0]);
    size_t total = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *view = PyList_GET_ITEM(args[0], i);
        if (!PyMemoryView_Check(view)) {
            PyErr_SetString(PyExc_TypeError, "a list of views is needed");
            return NULL;
        }
        if (view_memory(view, 0, &found) < 0)
            return NULL;
        if (found.iov_len > (size_t)PY_SSIZE_T_MAX - total)
            return PyErr_NoMemory();
        total += found.iov_len;
    }
    PyObject *joined = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)total);
    if (joined == NULL)
        return NULL;
    char *at = PyBytes_AS_STRING(joined);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (view_memory(PyList_GET_ITEM(args[0], i), 0, &found) < 0) {
            Py_DECREF(joined);
            return NULL;
        }
        if (found.iov_len)
            memcpy(at, found.iov_base, found.iov_len);
        at += found.iov_len;
    }
    return joined;
}

static PyMethodDef functions[] = {
    {"connect_pair", (PyCFunction)(void (*)(void))connect_pair, METH_FASTCALL, connect_pair_doc},
    {"listen_at", (PyCFunction)(void (*)(void))listen_at, METH_FASTCALL, listen_at_doc},
    {"netns_cookie", (PyCFunction)(void (*)(void))netns_cookie, METH_FASTCALL, netns_cookie_doc},
    {"tagged", (PyCFunction)(void (*)(void))tagged, METH_FASTCALL, tagged_doc},
    {"accept_pair", (PyCFunction)(void (*)(void))accept_pair, METH_FASTCALL, accept_pair_doc},
    {"connect_datagram", (PyCFunction)(void (*)(void))connect_datagram, METH_FASTCALL, connect_datagram_doc},
    {"bind_datagram", (PyCFunction)(void (*)(void))bind_datagram, METH_FASTCALL, bind_datagram_doc},
    {"write", (PyCFunction)(void (*)(void))write_bytes, METH_FASTCALL, write_doc},
    {"receive", (PyCFunction)(void (*)(void))receive, METH_FASTCALL, receive_doc},
    {"send", (PyCFunction)(void (*)(void))send_views, METH_FASTCALL, send_doc},
    {"receive_datagram", (PyCFunction)(void (*)(void))receive_datagram, METH_FASTCALL, receive_datagram_doc},
    {"receive_datagrams", (PyCFunction)(void (*)(void))receive_datagrams, METH_FASTCALL, receive_datagrams_doc},
    {"send_datagram", (PyCFunction)(void (*)(void))send_datagram, METH_FASTCALL, send_datagram_doc},
    {"send_run", (PyCFunction)(void (*)(void))send_run, METH_FASTCALL, send_run_doc},
    {"check_run", (PyCFunction)(void (*)(void))check_run, METH_FASTCALL, check_run_doc},
    {"read_fields", (PyCFunction)(void (*)(void))read_fields, METH_FASTCALL, read_fields_doc},
    {"epoll_wait", (PyCFunction)(void (*)(void))wait_for_events, METH_FASTCALL, epoll_wait_doc},
    {"epoll_ctl", (PyCFunction)(void (*)(void))control_epoll, METH_FASTCALL, epoll_ctl_doc},
    {"wait_readable", (PyCFunction)(void (*)(void))wait_readable, METH_FASTCALL, wait_readable_doc},
    {"poll_one", (PyCFunction)(void (*)(void))poll_one, METH_FASTCALL, poll_one_doc},
    {"compose_lone", (PyCFunction)(void (*)(void))compose_lone, METH_FASTCALL, compose_lone_doc},
    {"join_views", (PyCFunction)(void (*)(void))join_views, METH_FASTCALL, join_views_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "utpsocket._native",
    .m_doc = "What the compiled build does in C: see utpsocket/_native.c.",
    .m_size = 0,
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
