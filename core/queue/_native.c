/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The queue's hot path: what native.py leaves to C.
 *
 * Messages of an NFQUEUE are drained with recvmmsg and walked with every length checked.
 * What no helper need see passes at once (the sieve; sieve.py has the same in Python),
 * the rest becomes Packet objects, whose bytes stay where they were received. Verdicts
 * go out in one send, in the order of the packets, runs of plain accepts as one batch.
 *
 * include/uapi/linux/netfilter/nfnetlink_queue.h and nfnetlink_conntrack.h
 */
#define PY_SSIZE_T_CLEAN
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* recvmmsg */
#endif
#include <Python.h>
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

enum { HEADERS = 20, BATCH = 64, DRAINS = 8, SEND_LIMIT = 100000 };
/* A packet of 64 KiB and its attributes. */
enum { SLOT = 72 * 1024 };
/* The most of a packet that the kernel copies (NFQNL_MAX_COPY_RANGE), as in packet.py. */
enum { COPIED = 0xffff - 4 };
enum { MSG_PACKET = 3 << 8, MSG_VERDICT = 3 << 8 | 1, MSG_VERDICT_BATCH = 3 << 8 | 3 };
enum { TYPE_ERROR = 2, KIND = 0x3fff };
enum { QA_HEADER = 1, QA_INDEV = 5, QA_OUTDEV = 6, QA_PAYLOAD = 10, QA_CT = 11,
       QA_CT_INFO = 12 };
enum { CT_ORIG = 1, CT_STATUS = 3, CT_HELP = 5, CT_TIMEOUT = 7, CT_ID = 12, CT_ZONE = 18 };
enum { IS_REPLY = 3, CONFIRMED = 1 << 3, SEQ_ADJUST = 1 << 6, HOOKS = 5 };
enum { NAME_LIMIT = 16, ORIG_LIMIT = 128, MATCHED_BYTES = 64 };
enum { BUCKETS = 1 << 14 };
/* See sieve.py, which has the same. */
enum { UNNOTED = 120 };
enum { QUIET = 1, HELD = 2, ASKED = 4, TOUCHED = 8 };

/* ---- Reading: plain functions over bytes ---- */

typedef struct {
    const uint8_t *at;
    size_t size;
} span;

/* Where the transport header and its payload lie; protocol 0: not known here. */
typedef struct {
    uint8_t protocol, flags;
    uint32_t header, start, stop, sequence;
} place;

typedef struct {
    uint32_t id, indev, outdev;
    uint8_t hook;
    bool has_header, has_entry, reply;
    span payload, entry, original, helper;
    uint32_t ct_id, status, timeout;
    uint16_t zone;
    place where;
} message;

static uint16_t
be16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static uint32_t
be32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* The next attribute of `rest`: 1 and it is taken off, 0 at the end, -1 if cut off. */
static int
next_attribute(span *rest, uint16_t *kind, span *value)
{
    uint16_t length;
    size_t padded;

    if (rest->size < 4)
        return 0;
    memcpy(&length, rest->at, 2);
    memcpy(kind, rest->at + 2, 2);
    *kind &= KIND;
    if (length < 4 || length > rest->size)
        return -1;
    value->at = rest->at + 4;
    value->size = length - 4u;
    padded = ((size_t)length + 3) & ~(size_t)3;
    if (padded > rest->size)
        padded = rest->size;
    rest->at += padded;
    rest->size -= padded;
    return 1;
}

static int
read_u32(span value, uint32_t *result)
{
    if (value.size < 4)
        return -1;
    *result = be32(value.at);
    return 0;
}

/* The attributes of NFQA_CT that the sieve needs; -1: cut off. */
static int
read_entry(message *m)
{
    span rest = m->entry, value, inner;
    uint16_t kind;
    int more, bad = 0;

    while ((more = next_attribute(&rest, &kind, &value)) > 0) {
        switch (kind) {
        case CT_ORIG:
            m->original = value;
            break;
        case CT_STATUS:
            bad |= read_u32(value, &m->status);
            break;
        case CT_TIMEOUT:
            bad |= read_u32(value, &m->timeout);
            break;
        case CT_ID:
            bad |= read_u32(value, &m->ct_id);
            break;
        case CT_ZONE:
            if (value.size < 2)
                return -1;
            m->zone = be16(value.at);
            break;
        case CT_HELP:
            inner = value;
            while ((more = next_attribute(&inner, &kind, &value)) > 0)
                if (kind == 1) { /* the first one, as in Python */
                    m->helper = value;
                    while (m->helper.size && !m->helper.at[m->helper.size - 1])
                        m->helper.size--;
                    break;
                }
            bad |= more < 0;
            break;
        }
    }
    return more | bad;
}

/* Finds what packet.locate() finds, in packets without fragments and extensions. */
static void
locate(span packet, place *where)
{
    const uint8_t *at = packet.at;
    uint32_t header, stop, size;
    uint8_t protocol;

    where->protocol = 0;
    if (packet.size >= 20 && at[0] >> 4 == 4) {
        header = (at[0] & 15u) * 4;
        stop = be16(at + 2);
        protocol = at[9];
        if (header < 20 || header > stop || be16(at + 6) & 0x3fff)
            return;
    } else if (packet.size >= 40 && at[0] >> 4 == 6) {
        header = 40;
        stop = header + be16(at + 4);
        protocol = at[6];
        if (stop == header)
            return;
    } else
        return;
    if (stop > packet.size) {
        if (packet.size < COPIED || protocol != IPPROTO_TCP)
            return;
        stop = (uint32_t)packet.size;
    }
    where->header = header;
    where->stop = stop;
    where->sequence = 0;
    where->flags = 0;
    if (protocol == IPPROTO_UDP && header + 8 <= stop) {
        size = be16(at + header + 4);
        if (size < 8 || size > stop - header)
            return;
        where->start = header + 8;
        where->stop = header + size;
    } else if (protocol == IPPROTO_TCP && header + 20 <= stop) {
        size = (at[header + 12] >> 4) * 4u;
        if (size < 20 || size > stop - header)
            return;
        where->start = header + size;
        where->sequence = be32(at + header + 4);
        where->flags = at[header + 13];
    } else
        return;
    where->protocol = protocol;
}

/* A message of NFQNL_MSG_PACKET, headers included; -1: it is not whole. */
static int
read_message(span data, message *m)
{
    span rest, value;
    uint16_t kind;
    uint32_t info = 0;
    int more, bad = 0;

    memset(m, 0, sizeof *m);
    if (data.size < HEADERS)
        return -1;
    rest.at = data.at + HEADERS;
    rest.size = data.size - HEADERS;
    while ((more = next_attribute(&rest, &kind, &value)) > 0) {
        switch (kind) {
        case QA_HEADER:
            if (value.size < 7)
                return -1;
            m->id = be32(value.at);
            m->hook = value.at[6];
            m->has_header = true;
            break;
        case QA_INDEV:
            bad |= read_u32(value, &m->indev);
            break;
        case QA_OUTDEV:
            bad |= read_u32(value, &m->outdev);
            break;
        case QA_PAYLOAD:
            m->payload = value;
            break;
        case QA_CT:
            m->entry = value;
            m->has_entry = true;
            break;
        case QA_CT_INFO:
            bad |= read_u32(value, &info);
            break;
        }
    }
    m->reply = info >= IS_REPLY;
    if (more || bad || !m->has_header || m->hook >= HOOKS)
        return -1;
    if (m->has_entry && read_entry(m))
        return -1;
    locate(m->payload, &m->where);
    return 0;
}

/* ---- The sieve ---- */

typedef struct flow {
    struct flow *next;
    uint32_t id, timeout;
    uint16_t zone;
    uint8_t state, size;
    uint8_t original[]; /* CTA_TUPLE_ORIG: an id can come again with another one */
} flow;

typedef struct {
    uint16_t offset, length; /* bits */
    uint32_t value;
    bool last; /* of its alternative */
} match;

/* Alternatives one after the other; all: everything matches. */
typedef struct {
    bool all;
    size_t count;
    match *matches;
} alternatives;

typedef struct {
    char name[NAME_LIMIT + 1];
    bool answers;
    alternatives request, reply;
} filter;

typedef struct {
    flow *buckets[BUCKETS];
    size_t count, limit;
    unsigned unnoted; /* not 0: a flow that asked could not be noted */
    filter *filters;
    size_t filter_count;
    uint64_t *touched; /* id and zone of flows, each once */
    size_t touched_count, touched_room;
} sieve;

static flow **
slot_of(sieve *s, uint32_t id, uint16_t zone)
{
    uint32_t hash = (id ^ (uint32_t)zone * 0x9e3779b1u) * 0x85ebca6bu;
    flow **at = &s->buckets[hash >> 18];

    while (*at && ((*at)->id != id || (*at)->zone != zone))
        at = &(*at)->next;
    return at;
}

static void
forget(sieve *s, uint32_t id, uint16_t zone)
{
    flow **at = slot_of(s, id, zone), *gone = *at;

    if (gone) {
        *at = gone->next;
        PyMem_Free(gone);
        s->count--;
    }
}

/* The flow of an entry; NULL: not known. */
static flow *
find(sieve *s, const message *m)
{
    flow *found = *slot_of(s, m->ct_id, m->zone);

    if (found && (found->size != m->original.size ||
                  memcmp(found->original, m->original.at, found->size))) {
        forget(s, m->ct_id, m->zone);
        return NULL;
    }
    return found;
}

/* The same, made where it is not known; NULL: there is no room. */
static flow *
make(sieve *s, const message *m)
{
    flow *made = find(s, m), **at;

    if (made || s->count >= s->limit || m->original.size > ORIG_LIMIT)
        return made;
    made = PyMem_Calloc(1, sizeof *made + m->original.size);
    if (!made)
        return NULL;
    made->id = m->ct_id;
    made->zone = m->zone;
    made->size = (uint8_t)m->original.size;
    if (made->size)
        memcpy(made->original, m->original.at, made->size);
    at = slot_of(s, m->ct_id, m->zone);
    made->next = *at;
    *at = made;
    s->count++;
    return made;
}

static bool
matches(const alternatives *these, span payload)
{
    size_t i, size = payload.size < MATCHED_BYTES ? payload.size : MATCHED_BYTES;
    bool good = true;

    if (these->all)
        return true;
    for (i = 0; i < these->count; i++) {
        const match *one = &these->matches[i];
        uint32_t stop = (uint32_t)one->offset + one->length;
        if (stop > size * 8)
            good = false;
        else if (good) {
            uint64_t bits = 0;
            uint32_t byte;
            for (byte = one->offset / 8; byte < (stop + 7) / 8; byte++)
                bits = bits << 8 | payload.at[byte];
            bits >>= (8 - stop % 8) % 8;
            bits &= (1ull << one->length) - 1;
            good = bits == one->value;
        }
        if (one->last) {
            if (good)
                return true;
            good = true;
        }
    }
    return false;
}

static const filter *
filter_of(const sieve *s, span name)
{
    size_t i;

    for (i = 0; i < s->filter_count; i++)
        if (strlen(s->filters[i].name) == name.size &&
            !memcmp(s->filters[i].name, name.at, name.size))
            return &s->filters[i];
    return NULL;
}

/* Whether a helper must see a packet of a flow with which nothing is over. */
static bool
must_be_read(sieve *s, const message *m, const flow *known)
{
    const filter *f;
    span payload;

    if (m->where.protocol == IPPROTO_TCP)
        return !(m->status & CONFIRMED && m->where.start == m->where.stop &&
                 !(m->where.flags & 7)); /* FIN, SYN, RST */
    if (m->where.protocol != IPPROTO_UDP || !m->helper.size)
        return true;
    f = filter_of(s, m->helper);
    if (!f)
        return true;
    payload.at = m->payload.at + m->where.start;
    payload.size = m->where.stop - m->where.start;
    if (!m->reply) {
        if (!matches(&f->request, payload))
            return false;
        if (f->answers) {
            flow *asks = make(s, m);
            if (asks)
                asks->state |= ASKED;
            else
                s->unnoted = UNNOTED;
        }
        return true;
    }
    if (f->answers && !s->unnoted && !(known && known->state & ASKED))
        return false;
    return matches(&f->reply, payload);
}

static bool
passes(sieve *s, const message *m)
{
    flow *known;
    bool quiet;

    if (!m->has_entry || !m->original.size)
        return false;
    /* These have a verdict of their own (gate.py). */
    if (m->status & SEQ_ADJUST)
        return false;
    known = find(s, m);
    quiet = known && known->state & QUIET && m->status & CONFIRMED;
    if (!quiet && must_be_read(s, m, known))
        return false;
    if (known && known->state & HELD) {
        known->timeout = m->timeout;
        if (!(known->state & TOUCHED)) {
            if (s->touched_count == s->touched_room) {
                size_t room = s->touched_room ? s->touched_room * 2 : 64;
                uint64_t *more = PyMem_Realloc(s->touched, room * sizeof *more);
                if (!more)
                    return false; /* Python sees to it */
                s->touched = more;
                s->touched_room = room;
            }
            s->touched[s->touched_count++] = (uint64_t)known->zone << 32 | known->id;
            known->state |= TOUCHED;
        }
    }
    return true;
}

static void
free_filters(sieve *s)
{
    size_t i;

    for (i = 0; i < s->filter_count; i++) {
        PyMem_Free(s->filters[i].request.matches);
        PyMem_Free(s->filters[i].reply.matches);
    }
    PyMem_Free(s->filters);
    s->filters = NULL;
    s->filter_count = 0;
}

static void
clear_sieve(sieve *s)
{
    size_t i;

    for (i = 0; i < BUCKETS; i++)
        while (s->buckets[i]) {
            flow *gone = s->buckets[i];
            s->buckets[i] = gone->next;
            PyMem_Free(gone);
        }
    free_filters(s);
    PyMem_Free(s->touched);
}

/* ---- Packets, and the memory that they lie in ---- */

typedef struct {
    PyObject_HEAD
    uint8_t *memory; /* BATCH slots; pages are used as messages need them */
} Slab;

typedef struct {
    PyObject_HEAD
    Slab *slab; /* keeps what these point to */
    PyObject *conntrack, *hook, *direction, *segment_type, *transports;
    message m;
} Packet;

typedef struct {
    PyTypeObject *slab, *packet, *queue;
} module_state;

static void
slab_dealloc(Slab *self)
{
    PyTypeObject *type = Py_TYPE(self);

    if (self->memory)
        munmap(self->memory, (size_t)BATCH * SLOT);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot slab_slots[] = {{Py_tp_dealloc, slab_dealloc}, {0, NULL}};

static PyType_Spec slab_spec = {
    .name = "cthelper.core.queue._native.Slab",
    .basicsize = sizeof(Slab),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = slab_slots,
};

static Slab *
new_slab(PyTypeObject *type)
{
    Slab *slab = (Slab *)type->tp_alloc(type, 0);
    void *memory;

    if (!slab)
        return NULL;
    memory = mmap(NULL, (size_t)BATCH * SLOT, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        Py_DECREF(slab);
        PyErr_NoMemory();
        return NULL;
    }
    slab->memory = memory;
    return slab;
}

static void
packet_dealloc(Packet *self)
{
    PyTypeObject *type = Py_TYPE(self);

    Py_XDECREF(self->slab);
    Py_XDECREF(self->conntrack);
    Py_XDECREF(self->hook);
    Py_XDECREF(self->direction);
    Py_XDECREF(self->segment_type);
    Py_XDECREF(self->transports);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
packet_buffer(Packet *self, Py_buffer *view, int flags)
{
    return PyBuffer_FillInfo(view, (PyObject *)self, (void *)self->m.payload.at,
                             (Py_ssize_t)self->m.payload.size, 1, flags);
}

static PyObject *
packet_payload(Packet *self, void *closure)
{
    (void)closure;
    return PyMemoryView_FromObject((PyObject *)self);
}

/* What packet.locate() finds; None: it was not looked for with all its rules. */
static PyObject *
packet_segment(Packet *self, void *closure)
{
    const place *where = &self->m.where;

    (void)closure;
    if (!where->protocol)
        Py_RETURN_NONE;
    return PyObject_CallFunction(
        self->segment_type, "OIIIIO",
        PyTuple_GET_ITEM(self->transports, where->protocol == IPPROTO_UDP),
        where->header, where->start, where->stop, where->sequence,
        where->flags & 2 ? Py_True : Py_False);
}

#define PACKET_OBJECT(name)                                                            \
    static PyObject *packet_##name(Packet *self, void *closure)                        \
    {                                                                                  \
        (void)closure;                                                                 \
        return Py_NewRef(self->name);                                                  \
    }
#define PACKET_NUMBER(name)                                                            \
    static PyObject *packet_##name(Packet *self, void *closure)                        \
    {                                                                                  \
        (void)closure;                                                                 \
        return PyLong_FromUnsignedLong(self->m.name);                                  \
    }
PACKET_OBJECT(conntrack)
PACKET_OBJECT(hook)
PACKET_OBJECT(direction)
PACKET_NUMBER(id)
PACKET_NUMBER(indev)
PACKET_NUMBER(outdev)

static PyGetSetDef packet_getset[] = {
    {"id", (getter)packet_id, NULL, NULL, NULL},
    {"hook", (getter)packet_hook, NULL, NULL, NULL},
    {"payload", (getter)packet_payload, NULL, NULL, NULL},
    {"conntrack", (getter)packet_conntrack, NULL, NULL, NULL},
    {"direction", (getter)packet_direction, NULL, NULL, NULL},
    {"indev", (getter)packet_indev, NULL, NULL, NULL},
    {"outdev", (getter)packet_outdev, NULL, NULL, NULL},
    {"segment", (getter)packet_segment, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot packet_slots[] = {
    {Py_tp_dealloc, packet_dealloc},
    {Py_tp_getset, packet_getset},
    {Py_bf_getbuffer, packet_buffer},
    {0, NULL},
};

static PyType_Spec packet_spec = {
    .name = "cthelper.core.queue._native.Packet",
    .basicsize = sizeof(Packet),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = packet_slots,
};

/* ---- The queue ---- */

enum { WAITS, ACCEPTED };

typedef struct {
    uint32_t id;
    uint8_t state;
} pending;

typedef struct {
    PyObject_HEAD
    int descriptor;
    uint16_t number;
    bool numbered; /* last_id is one */
    uint32_t last_id;
    /* decode: bytes of NFQA_CT to an entry; it remembers those that come again. */
    PyObject *decode, *hooks, *directions, *segment_type, *transports;
    PyObject *malformed; /* exceptions of decode that mean: cut off */
    Slab *slab;
    PyObject *found; /* packets of a drain in wait() */
    pending *pending; /* read and not answered, by id */
    size_t pending_count, pending_room, waiting;
    uint8_t *out;
    size_t out_size, out_room;
    unsigned long long received, answered, bypassed, overruns, refused, passed;
    sieve s;
} Queue;

static int
send_out(Queue *q)
{
    ssize_t sent;

    if (!q->out_size)
        return 0;
    sent = send(q->descriptor, q->out, q->out_size, 0);
    q->out_size = 0;
    if (sent < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

static int
put(Queue *q, const void *data, size_t size)
{
    if (q->out_size && q->out_size + size > SEND_LIMIT && send_out(q))
        return -1;
    if (q->out_size + size > q->out_room) {
        size_t room = q->out_size + size + 4096;
        uint8_t *more = PyMem_Realloc(q->out, room);
        if (!more) {
            PyErr_NoMemory();
            return -1;
        }
        q->out = more;
        q->out_room = room;
    }
    memcpy(q->out + q->out_size, data, size);
    q->out_size += size;
    return 0;
}

/* NF_ACCEPT for one packet, or for all that wait up to it. */
static int
put_accept(Queue *q, uint32_t id, bool batch)
{
    struct {
        uint32_t length;
        uint16_t type, flags;
        uint32_t sequence, port;
        uint8_t family, version;
        uint16_t queue, size, kind;
        uint32_t verdict, id;
    } m = {32, batch ? MSG_VERDICT_BATCH : MSG_VERDICT, 1, 0, 0, 0, 0,
           htons(q->number), 12, 2, htonl(1), htonl(id)};

    return put(q, &m, sizeof m);
}

static int
remember(Queue *q, uint32_t id, uint8_t state)
{
    if (q->pending_count == q->pending_room) {
        size_t room = q->pending_room ? q->pending_room * 2 : BATCH;
        pending *more = PyMem_Realloc(q->pending, room * sizeof *more);
        if (!more) {
            PyErr_NoMemory();
            return -1;
        }
        q->pending = more;
        q->pending_room = room;
    }
    q->pending[q->pending_count].id = id;
    q->pending[q->pending_count++].state = state;
    q->waiting += state == WAITS;
    return 0;
}

/* Answer all that is pending, in order: `own` has the messages of those that wait, None
 * for a plain accept. */
static int
put_all(Queue *q, PyObject *own)
{
    size_t i, run = 0, next = 0;

    for (i = 0; i < q->pending_count; i++) {
        PyObject *mine = Py_None;
        if (q->pending[i].state == WAITS)
            mine = PyList_GET_ITEM(own, (Py_ssize_t)next++);
        if (mine == Py_None) {
            run++;
            continue;
        }
        if (run && put_accept(q, q->pending[i - 1].id, run > 1))
            return -1;
        run = 0;
        if (put(q, PyBytes_AS_STRING(mine), (size_t)PyBytes_GET_SIZE(mine)))
            return -1;
    }
    if (run && put_accept(q, q->pending[i - 1].id, run > 1))
        return -1;
    q->answered += q->pending_count;
    q->pending_count = q->waiting = 0;
    return send_out(q);
}

/* The entry in NFQA_CT. */
static PyObject *
entry_of(Queue *q, const message *m)
{
    PyObject *bytes, *entry;

    if (!m->has_entry)
        return Py_NewRef(Py_None);
    bytes = PyBytes_FromStringAndSize((const char *)m->entry.at,
                                      (Py_ssize_t)m->entry.size);
    if (!bytes)
        return NULL;
    entry = PyObject_CallOneArg(q->decode, bytes);
    Py_DECREF(bytes);
    return entry;
}

static PyObject *
new_packet(Queue *q, Slab *slab, const message *m)
{
    module_state *state = PyType_GetModuleState(Py_TYPE(q));
    PyObject *entry = entry_of(q, m);
    Packet *packet;

    if (!entry)
        return NULL;
    packet = (Packet *)state->packet->tp_alloc(state->packet, 0);
    if (!packet) {
        Py_DECREF(entry);
        return NULL;
    }
    packet->slab = (Slab *)Py_XNewRef((PyObject *)slab);
    packet->m = *m;
    packet->conntrack = entry;
    packet->hook = Py_NewRef(PyTuple_GET_ITEM(q->hooks, m->hook));
    packet->direction = Py_NewRef(PyTuple_GET_ITEM(q->directions, m->reply));
    packet->segment_type = Py_NewRef(q->segment_type);
    packet->transports = Py_NewRef(q->transports);
    return (PyObject *)packet;
}

/* One packet's message, which passes at once or goes into `found`. */
static int
take_packet(Queue *q, Slab *slab, span data, PyObject *found)
{
    message m;
    PyObject *packet;
    int failed;

    if (read_message(data, &m)) {
        q->refused++;
        return m.has_header ? remember(q, m.id, ACCEPTED) : 0;
    }
    if (q->numbered)
        q->bypassed += (uint32_t)(m.id - q->last_id - 1);
    q->numbered = true;
    q->last_id = m.id;
    if (passes(&q->s, &m)) {
        q->received++;
        q->passed++;
        return remember(q, m.id, ACCEPTED);
    }
    packet = new_packet(q, slab, &m);
    if (!packet) {
        if (!PyErr_ExceptionMatches(q->malformed))
            return -1;
        PyErr_Clear();
        q->refused++;
        return remember(q, m.id, ACCEPTED);
    }
    q->received++;
    failed = PyList_Append(found, packet) || remember(q, m.id, WAITS);
    Py_DECREF(packet);
    return failed ? -1 : 0;
}

/* The messages of one datagram. */
static int
take_datagram(Queue *q, Slab *slab, span data, PyObject *found)
{
    while (data.size >= 16) {
        span one = data;
        uint32_t length;
        uint16_t type;
        int32_t error;

        memcpy(&length, data.at, 4);
        memcpy(&type, data.at + 4, 2);
        if (length < 16 || length > data.size) {
            q->refused++;
            return 0;
        }
        one.size = length;
        if (type == MSG_PACKET) {
            if (take_packet(q, slab, one, found))
                return -1;
        } else if (type == TYPE_ERROR && length >= 20) {
            memcpy(&error, data.at + 16, 4);
            q->refused += error != 0;
        }
        length = (length + 3) & ~3u;
        if (length > data.size)
            return 0;
        data.at += length;
        data.size -= length;
    }
    return 0;
}

/* What waits now, at most `limit` messages; how many there were, or -1. */
static int
drain(Queue *q, int limit, PyObject *found)
{
    struct mmsghdr headers[BATCH];
    struct iovec vectors[BATCH];
    module_state *state = PyType_GetModuleState(Py_TYPE(q));
    int i, count;

    if (!q->slab || Py_REFCNT(q->slab) > 1) {
        /* Somebody has kept a packet, or a view of one: its memory is left to it. */
        Py_CLEAR(q->slab);
        q->slab = new_slab(state->slab);
        if (!q->slab)
            return -1;
    }
    memset(headers, 0, sizeof headers);
    for (i = 0; i < limit; i++) {
        vectors[i].iov_base = q->slab->memory + (size_t)i * SLOT;
        vectors[i].iov_len = SLOT;
        headers[i].msg_hdr.msg_iov = &vectors[i];
        headers[i].msg_hdr.msg_iovlen = 1;
    }
    for (;;) {
        count = recvmmsg(q->descriptor, headers, (unsigned)limit, MSG_DONTWAIT, NULL);
        if (count >= 0)
            break;
        if (errno == ENOBUFS)
            q->overruns++;
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            return 0;
        else if (errno != EINTR) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
    }
    for (i = 0; i < count; i++) {
        span data = {vectors[i].iov_base, headers[i].msg_len};
        if (take_datagram(q, q->slab, data, found))
            return -1;
    }
    return count;
}

/* Drain until there is something for Python; what passes goes on at once. */
static int
serve(Queue *q, int limit, PyObject *found)
{
    int turn, count;

    for (turn = 0; turn < DRAINS; turn++) {
        count = drain(q, limit, found);
        if (count < 0)
            return -1;
        if (!q->waiting && put_all(q, NULL))
            return -1;
        if (PyList_GET_SIZE(found) || count < limit)
            break;
    }
    return 0;
}

static PyObject *
queue_read(Queue *q, PyObject *argument)
{
    long limit = PyLong_AsLong(argument);
    PyObject *found;

    if (limit == -1 && PyErr_Occurred())
        return NULL;
    if (q->found) {
        found = q->found;
        q->found = NULL;
        return found;
    }
    if (limit > BATCH)
        limit = BATCH;
    found = PyList_New(0);
    if (found && limit > 0 && serve(q, (int)limit, found))
        Py_CLEAR(found);
    return found;
}

/* Where a packet that waits is among the pending; -1: it is not. */
static Py_ssize_t
pending_at(const Queue *q, uint32_t id)
{
    size_t i;

    for (i = 0; i < q->pending_count; i++)
        if (q->pending[i].id == id && q->pending[i].state == WAITS)
            return (Py_ssize_t)i;
    return -1;
}

/* Some of those that wait, or in another order than they came: one by one. */
static int
answer_some(Queue *q, PyObject *ids, PyObject *own)
{
    Py_ssize_t i;

    for (i = 0; i < PyList_GET_SIZE(ids); i++) {
        uint32_t id = (uint32_t)PyLong_AsUnsignedLong(PyList_GET_ITEM(ids, i));
        PyObject *mine = PyList_GET_ITEM(own, i);
        Py_ssize_t at = pending_at(q, id);
        if (at < 0) {
            PyErr_Format(PyExc_KeyError, "packet %u does not wait", id);
            return -1;
        }
        memmove(q->pending + at, q->pending + at + 1,
                (q->pending_count - (size_t)at - 1) * sizeof *q->pending);
        q->pending_count--;
        q->waiting--;
        q->answered++;
        if (mine == Py_None ? put_accept(q, id, false)
                            : put(q, PyBytes_AS_STRING(mine),
                                  (size_t)PyBytes_GET_SIZE(mine)))
            return -1;
    }
    if (!q->waiting)
        return put_all(q, NULL);
    return send_out(q);
}

/* answer(ids, messages): messages has bytes for each packet, None for a plain accept. */
static PyObject *
queue_answer(Queue *q, PyObject *arguments)
{
    PyObject *ids, *own;
    size_t i, next = 0;
    bool whole;

    if (!PyArg_ParseTuple(arguments, "O!O!", &PyList_Type, &ids, &PyList_Type, &own))
        return NULL;
    if (PyList_GET_SIZE(ids) != PyList_GET_SIZE(own)) {
        PyErr_SetString(PyExc_ValueError, "a message or None for each packet");
        return NULL;
    }
    for (i = 0; i < (size_t)PyList_GET_SIZE(own); i++) {
        PyObject *mine = PyList_GET_ITEM(own, (Py_ssize_t)i);
        if (mine != Py_None && !PyBytes_Check(mine)) {
            PyErr_SetString(PyExc_TypeError, "a message is bytes");
            return NULL;
        }
    }
    whole = (size_t)PyList_GET_SIZE(ids) == q->waiting;
    for (i = 0; whole && i < q->pending_count; i++)
        if (q->pending[i].state == WAITS) {
            PyObject *id = PyList_GET_ITEM(ids, (Py_ssize_t)next++);
            whole = PyLong_AsUnsignedLong(id) == q->pending[i].id;
        }
    if (PyErr_Occurred() || (whole ? put_all(q, own) : answer_some(q, ids, own)))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *
queue_note(Queue *q, PyObject *arguments)
{
    module_state *state = PyType_GetModuleState(Py_TYPE(q));
    Packet *packet;
    int quiet, held;
    flow *known;

    if (!PyArg_ParseTuple(arguments, "O!pp", state->packet, &packet, &quiet, &held))
        return NULL;
    if (packet->m.original.size) {
        known = make(&q->s, &packet->m);
        if (known)
            known->state = (uint8_t)((known->state & ~(QUIET | HELD)) |
                                     (quiet ? QUIET : 0) | (held ? HELD : 0));
    }
    Py_RETURN_NONE;
}

static PyObject *
queue_forget(Queue *q, PyObject *argument)
{
    uint64_t key = PyLong_AsUnsignedLongLong(argument);

    if (key == (uint64_t)-1 && PyErr_Occurred())
        return NULL;
    forget(&q->s, (uint32_t)key, (uint16_t)(key >> 32));
    Py_RETURN_NONE;
}

static PyObject *
queue_touched(Queue *q, PyObject *unused)
{
    PyObject *result = PyList_New(0);
    size_t i;

    (void)unused;
    if (q->s.unnoted)
        q->s.unnoted--;
    for (i = 0; result && i < q->s.touched_count; i++) {
        uint64_t key = q->s.touched[i];
        flow *known = *slot_of(&q->s, (uint32_t)key, (uint16_t)(key >> 32));
        PyObject *one;
        if (!known || !(known->state & TOUCHED))
            continue;
        known->state &= (uint8_t)~TOUCHED;
        one = Py_BuildValue("(KI)", (unsigned long long)key, known->timeout);
        if (!one || PyList_Append(result, one))
            Py_CLEAR(result);
        Py_XDECREF(one);
    }
    q->s.touched_count = 0;
    return result;
}

/* Alternatives: None, or a tuple of tuples of (offset, length, value). */
static int
read_alternatives(PyObject *from, alternatives *these)
{
    Py_ssize_t i, j;
    size_t count = 0;

    memset(these, 0, sizeof *these);
    these->all = from == Py_None;
    if (these->all)
        return 0;
    if (!PyTuple_Check(from))
        goto bad;
    for (i = 0; i < PyTuple_GET_SIZE(from); i++) {
        PyObject *one = PyTuple_GET_ITEM(from, i);
        if (!PyTuple_Check(one) || !PyTuple_GET_SIZE(one))
            goto bad;
        count += (size_t)PyTuple_GET_SIZE(one);
    }
    these->matches = PyMem_Calloc(count ? count : 1, sizeof *these->matches);
    if (!these->matches) {
        PyErr_NoMemory();
        return -1;
    }
    for (i = 0; i < PyTuple_GET_SIZE(from); i++) {
        PyObject *one = PyTuple_GET_ITEM(from, i);
        for (j = 0; j < PyTuple_GET_SIZE(one); j++) {
            match *m = &these->matches[these->count++];
            unsigned int offset, length, value;
            if (!PyTuple_Check(PyTuple_GET_ITEM(one, j)) ||
                !PyArg_ParseTuple(PyTuple_GET_ITEM(one, j), "III", &offset, &length,
                                  &value))
                goto bad;
            if (!length || length > 32 || offset > MATCHED_BYTES * 8 - length)
                goto bad;
            m->offset = (uint16_t)offset;
            m->length = (uint16_t)length;
            m->value = value;
            m->last = j + 1 == PyTuple_GET_SIZE(one);
        }
    }
    return 0;
bad:
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError,
                        "a match is offset, length (1 to 32) and value, within the "
                        "first 512 bits");
    return -1;
}

/* filters(((name, request, reply, answers), ...)) */
static PyObject *
queue_filters(Queue *q, PyObject *argument)
{
    Py_ssize_t i, count;

    if (!PyTuple_Check(argument)) {
        PyErr_SetString(PyExc_TypeError, "filters are a tuple");
        return NULL;
    }
    count = PyTuple_GET_SIZE(argument);
    free_filters(&q->s);
    q->s.filters = PyMem_Calloc(count ? (size_t)count : 1, sizeof(filter));
    if (!q->s.filters)
        return PyErr_NoMemory();
    for (i = 0; i < count; i++) {
        filter *f = &q->s.filters[i];
        PyObject *request, *reply;
        const char *name;
        int answers;
        q->s.filter_count++;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(argument, i), "sOOp", &name, &request,
                              &reply, &answers))
            goto failed;
        if (strlen(name) > NAME_LIMIT) {
            PyErr_SetString(PyExc_ValueError, "name of a helper is too long");
            goto failed;
        }
        strcpy(f->name, name);
        f->answers = answers;
        if (read_alternatives(request, &f->request) || read_alternatives(reply, &f->reply))
            goto failed;
    }
    Py_RETURN_NONE;
failed:
    free_filters(&q->s);
    return NULL;
}

/* inject(message): take one as if it had been received; for tests. */
static PyObject *
queue_inject(Queue *q, PyObject *argument)
{
    module_state *state = PyType_GetModuleState(Py_TYPE(q));
    PyObject *found;
    Slab *slab;
    char *bytes;
    Py_ssize_t size;
    span data;

    if (PyBytes_AsStringAndSize(argument, &bytes, &size))
        return NULL;
    if (size > SLOT) {
        PyErr_SetString(PyExc_ValueError, "message is too long");
        return NULL;
    }
    slab = new_slab(state->slab);
    found = slab ? PyList_New(0) : NULL;
    if (found) {
        /* At the end of the memory, so that reading beyond it faults. */
        data.at = slab->memory + (size_t)BATCH * SLOT - (size_t)size;
        data.size = (size_t)size;
        memcpy((void *)data.at, bytes, data.size);
        if (take_datagram(q, slab, data, found))
            Py_CLEAR(found);
    }
    Py_XDECREF(slab);
    return found;
}

static PyObject *
queue_statistics(Queue *q, PyObject *unused)
{
    (void)unused;
    return Py_BuildValue("(KKKKKK)", q->received, q->answered, q->bypassed, q->overruns,
                         q->refused, q->passed);
}

static int
queue_init(Queue *q, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"descriptor", "number",  "decode",   "malformed",
                            "hooks",      "directions", "segment", "transports",
                            "flows",      NULL};
    int descriptor;
    unsigned short number;
    PyObject *decode, *malformed, *hooks, *directions, *segment, *transports;
    Py_ssize_t flows;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "iHOOO!O!OO!n", names,
                                     &descriptor, &number, &decode, &malformed,
                                     &PyTuple_Type, &hooks, &PyTuple_Type, &directions,
                                     &segment, &PyTuple_Type, &transports, &flows))
        return -1;
    if (q->decode || PyTuple_GET_SIZE(hooks) != HOOKS || flows < 0 ||
        PyTuple_GET_SIZE(directions) != 2 || PyTuple_GET_SIZE(transports) != 2) {
        PyErr_SetString(PyExc_ValueError, "5 hooks, 2 directions, 2 transports, once");
        return -1;
    }
    q->descriptor = descriptor;
    q->number = number;
    q->decode = Py_NewRef(decode);
    q->malformed = Py_NewRef(malformed);
    q->hooks = Py_NewRef(hooks);
    q->directions = Py_NewRef(directions);
    q->segment_type = Py_NewRef(segment);
    q->transports = Py_NewRef(transports);
    q->s.limit = (size_t)flows;
    return 0;
}

static int
queue_clear(Queue *q)
{
    Py_CLEAR(q->decode);
    Py_CLEAR(q->malformed);
    Py_CLEAR(q->hooks);
    Py_CLEAR(q->directions);
    Py_CLEAR(q->segment_type);
    Py_CLEAR(q->transports);
    Py_CLEAR(q->slab);
    Py_CLEAR(q->found);
    return 0;
}

static int
queue_traverse(Queue *q, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(q));
    Py_VISIT(q->decode);
    Py_VISIT(q->malformed);
    Py_VISIT(q->found);
    return 0;
}

static void
queue_dealloc(Queue *q)
{
    PyTypeObject *type = Py_TYPE(q);

    PyObject_GC_UnTrack(q);
    queue_clear(q);
    clear_sieve(&q->s);
    PyMem_Free(q->pending);
    PyMem_Free(q->out);
    type->tp_free(q);
    Py_DECREF(type);
}

static PyMethodDef queue_methods[] = {
    {"read", (PyCFunction)queue_read, METH_O, NULL},
    {"answer", (PyCFunction)queue_answer, METH_VARARGS, NULL},
    {"note", (PyCFunction)queue_note, METH_VARARGS, NULL},
    {"forget", (PyCFunction)queue_forget, METH_O, NULL},
    {"touched", (PyCFunction)queue_touched, METH_NOARGS, NULL},
    {"filters", (PyCFunction)queue_filters, METH_O, NULL},
    {"inject", (PyCFunction)queue_inject, METH_O, NULL},
    {"statistics", (PyCFunction)queue_statistics, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot queue_slots[] = {
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, queue_init},
    {Py_tp_dealloc, queue_dealloc},
    {Py_tp_traverse, queue_traverse},
    {Py_tp_clear, queue_clear},
    {Py_tp_methods, queue_methods},
    {0, NULL},
};

static PyType_Spec queue_spec = {
    .name = "cthelper.core.queue._native.Queue",
    .basicsize = sizeof(Queue),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = queue_slots,
};

/* Milliseconds after which what passes unseen lets Python go on for a moment. */
enum { QUEUES = 64, BUSY = 20 };

/* wait(queues, descriptor, seconds): until a queue has packets for Python, `descriptor`
 * is readable, a signal has come or the time is over. What passes goes on meanwhile,
 * and after a while of that it returns, too. Whether `descriptor` is readable. */
static PyObject *
native_wait(PyObject *module, PyObject *arguments)
{
    module_state *state = PyModule_GetState(module);
    struct pollfd fds[QUEUES + 1];
    struct timespec now, end, busy = {0, 0};
    PyObject *queues;
    Py_ssize_t i, count;
    int descriptor, ready;
    double seconds;
    long left;

    if (!PyArg_ParseTuple(arguments, "O!id", &PyList_Type, &queues, &descriptor, &seconds))
        return NULL;
    count = PyList_GET_SIZE(queues);
    if (count > QUEUES) {
        PyErr_SetString(PyExc_ValueError, "too many queues");
        return NULL;
    }
    for (i = 0; i < count; i++) {
        PyObject *one = PyList_GET_ITEM(queues, i);
        if (!PyObject_TypeCheck(one, state->queue)) {
            PyErr_SetString(PyExc_TypeError, "a list of queues");
            return NULL;
        }
        if (((Queue *)one)->found)
            Py_RETURN_FALSE;
        fds[i].fd = ((Queue *)one)->descriptor;
        fds[i].events = POLLIN;
    }
    fds[count].fd = descriptor;
    fds[count].events = POLLIN;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += (time_t)seconds;
    end.tv_nsec += (long)((seconds - (double)(time_t)seconds) * 1e9);
    for (;;) {
        bool found = false;
        clock_gettime(CLOCK_MONOTONIC, &now);
        left = (end.tv_sec - now.tv_sec) * 1000 + (end.tv_nsec - now.tv_nsec + 999999) / 1000000;
        Py_BEGIN_ALLOW_THREADS
        ready = poll(fds, (nfds_t)count + 1, left > 0 ? (int)left : 0);
        Py_END_ALLOW_THREADS
        if (ready < 0 && errno != EINTR)
            return PyErr_SetFromErrno(PyExc_OSError);
        if (PyErr_CheckSignals())
            return NULL;
        if (ready <= 0)
            Py_RETURN_FALSE;
        for (i = 0; i < count; i++) {
            Queue *q = (Queue *)PyList_GET_ITEM(queues, i);
            PyObject *packets;
            if (!fds[i].revents)
                continue;
            packets = PyList_New(0);
            if (!packets || serve(q, BATCH, packets)) {
                Py_XDECREF(packets);
                return NULL;
            }
            if (PyList_GET_SIZE(packets)) {
                q->found = packets;
                found = true;
            } else
                Py_DECREF(packets);
        }
        if (!busy.tv_sec)
            busy = now;
        if (found || fds[count].revents || left <= 0 ||
            (now.tv_sec - busy.tv_sec) * 1000 + (now.tv_nsec - busy.tv_nsec) / 1000000 >= BUSY)
            return PyBool_FromLong(fds[count].revents);
    }
}

static int
native_exec(PyObject *module)
{
    module_state *state = PyModule_GetState(module);

    state->slab = (PyTypeObject *)PyType_FromModuleAndSpec(module, &slab_spec, NULL);
    state->packet = (PyTypeObject *)PyType_FromModuleAndSpec(module, &packet_spec, NULL);
    state->queue = (PyTypeObject *)PyType_FromModuleAndSpec(module, &queue_spec, NULL);
    if (!state->slab || !state->packet || !state->queue ||
        PyModule_AddType(module, state->packet) || PyModule_AddType(module, state->queue))
        return -1;
    return 0;
}

static int
native_traverse(PyObject *module, visitproc visit, void *arg)
{
    module_state *state = PyModule_GetState(module);

    Py_VISIT(state->slab);
    Py_VISIT(state->packet);
    Py_VISIT(state->queue);
    return 0;
}

static int
native_clear(PyObject *module)
{
    module_state *state = PyModule_GetState(module);

    Py_CLEAR(state->slab);
    Py_CLEAR(state->packet);
    Py_CLEAR(state->queue);
    return 0;
}

static PyMethodDef native_methods[] = {
    {"wait", native_wait, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot native_slots[] = {{Py_mod_exec, (void *)native_exec}, {0, NULL}};

static struct PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "cthelper.core.queue._native",
    .m_size = sizeof(module_state),
    .m_methods = native_methods,
    .m_slots = native_slots,
    .m_traverse = native_traverse,
    .m_clear = native_clear,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&native_module);
}
