// One side of a conversation over libutp. The other side's twin in Python is ../stream.py, whose docstring
// describes the conversations; this file follows it name by name.
//
//   node peer.cjs listen [SETTINGS]               prints {"port": …}, serves one connection, prints {"report": …}
//   node peer.cjs connect HOST PORT HEADER [SETTINGS]
//
// HEADER and SETTINGS are JSON. Settings: receive_buffer_bytes, send_buffer_bytes (of the UDP socket), port.
// Ends when standard input does. utp-native is found through NODE_PATH.
'use strict'

const crypto = require('crypto')
const utp = require('utp-native')

const BLOCK_BYTES = 1 << 20
const CHUNK_BYTES = 64 << 10
const CLOSE_TIMEOUT_MS = 20000 // for libutp to have its FIN acknowledged after both directions ended

function emit (message) {
  process.stdout.write(JSON.stringify(message) + '\n')
}

// Seeded bytes: one block, stamped with its number so that no displaced block goes unseen.
class Source {
  constructor (seed) {
    this.block = crypto.createHash('shake128', { outputLength: BLOCK_BYTES }).update('seed ' + seed).digest()
  }

  * chunks (bytes) {
    for (let number = 0; bytes > 0; number++) {
      const block = Buffer.from(this.block)
      block.writeBigUInt64BE(BigInt(number), 0)
      const size = Math.min(bytes, BLOCK_BYTES)
      for (let offset = 0; offset < size; offset += CHUNK_BYTES) {
        yield block.subarray(offset, Math.min(offset + CHUNK_BYTES, size))
      }
      bytes -= size
    }
  }
}

class Tally {
  constructor () {
    this.bytes = 0
    this.hash = crypto.createHash('sha256')
  }

  add (chunk) {
    this.bytes += chunk.length
    this.hash.update(chunk)
  }

  report () {
    return { bytes: this.bytes, sha256: this.hash.copy().digest('hex') }
  }
}

class Stream {
  constructor (conn) {
    this.conn = conn
    this.sent = new Tally()
    this.received = new Tally()
    this.chunks = []
    this.eof = false
    this.error = null
    this.wake = () => {}
    this.closed = new Promise((resolve) => conn.once('close', resolve))
    conn.on('data', (chunk) => { this.chunks.push(chunk); this.wake() })
    conn.on('end', () => { this.eof = true; this.wake() })
    conn.on('error', (error) => { this.error = error; this.wake() })
    conn.on('close', () => { this.gone = true; this.wake() })
  }

  async next () {
    while (true) {
      if (this.chunks.length) return this.chunks.shift()
      if (this.error) throw this.error
      if (this.eof) return null
      if (this.gone) throw new Error('closed without an end')
      await new Promise((resolve) => { this.wake = resolve })
    }
  }

  async line () {
    let text = Buffer.alloc(0)
    while (!text.includes(10)) {
      const chunk = await this.next()
      if (chunk === null) throw new Error('end of stream instead of a line')
      text = Buffer.concat([text, chunk])
    }
    const end = text.indexOf(10)
    if (end + 1 < text.length) this.chunks.unshift(text.subarray(end + 1))
    return JSON.parse(text.subarray(0, end).toString())
  }

  async take (bytes, onchunk = async () => {}) {
    while (bytes > 0) {
      let chunk = await this.next()
      if (chunk === null) throw new Error('end of stream, ' + bytes + ' bytes early')
      if (chunk.length > bytes) {
        this.chunks.unshift(chunk.subarray(bytes))
        chunk = chunk.subarray(0, bytes)
      }
      bytes -= chunk.length
      this.received.add(chunk)
      await onchunk(chunk)
    }
  }

  async takeAll () {
    for (let chunk = await this.next(); chunk !== null; chunk = await this.next()) this.received.add(chunk)
  }

  // One write at a time: utp-native forgets all but the first of several writes made before the connection stands.
  put (chunk) {
    return new Promise((resolve, reject) => {
      if (this.error) return reject(this.error)
      if (this.gone) return reject(new Error('closed while writing'))
      const failed = (error) => reject(error || this.error || new Error('closed while writing'))
      this.conn.once('close', failed)
      this.conn.write(chunk, (error) => {
        this.conn.removeListener('close', failed)
        if (error) reject(error)
        else resolve()
      })
    })
  }

  putLine (value) {
    return this.put(Buffer.from(JSON.stringify(value) + '\n'))
  }

  async putCounted (chunk) {
    await this.put(chunk)
    this.sent.add(chunk)
  }

  async putSeeded (bytes, seed) {
    for (const chunk of new Source(seed).chunks(bytes)) await this.putCounted(chunk)
  }

  end () {
    this.conn.end()
  }
}

const SERVER = {
  async upload (stream, header) {
    await stream.take(header.bytes)
    await stream.putLine(stream.received.report())
    stream.end()
    await stream.takeAll()
  },
  async download (stream, header) {
    await stream.putSeeded(header.bytes, header.seed)
    stream.end()
    await stream.takeAll()
  },
  async echo (stream, header) {
    await stream.take(header.bytes, (chunk) => stream.putCounted(chunk))
    stream.end()
    await stream.takeAll()
  },
  async half_close (stream, header) {
    await stream.takeAll()
    await stream.putSeeded(header.bytes, header.seed + 1)
    stream.end()
  },
  async half_close_reverse (stream, header) {
    await stream.putSeeded(header.bytes, header.seed)
    stream.end()
    await stream.takeAll()
  },
  async idle (stream, header) {
    for (let round = 0; round < 2; round++) {
      await stream.take(header.bytes)
      await stream.putSeeded(header.bytes, header.seed + round)
    }
    await stream.takeAll()
    stream.end()
  },
  async abort (stream, header) {
    await stream.take(header.bytes)
    await stream.putLine({ ready: true })
    await stream.takeAll()
  },
  async vanish (stream, header) {
    await stream.take(header.bytes)
    await stream.putSeeded(header.bytes, header.seed)
    await stream.takeAll()
  },
  async endless (stream) {
    await stream.takeAll()
  }
}

const CLIENT = {
  async upload (stream, header) {
    await stream.putSeeded(header.bytes, header.seed)
    const digest = await stream.line()
    if (digest.sha256 !== stream.sent.report().sha256) throw new Error('the peer received other bytes than were sent')
    await stream.takeAll()
    stream.end()
  },
  async download (stream, header) {
    await stream.takeAll()
    stream.end()
  },
  async echo (stream, header) {
    await Promise.all([stream.putSeeded(header.bytes, header.seed), stream.take(header.bytes)])
    await stream.takeAll()
    stream.end()
  },
  async half_close (stream, header) {
    await stream.putSeeded(header.bytes, header.seed)
    stream.end()
    await stream.takeAll()
  },
  async half_close_reverse (stream, header) {
    await stream.takeAll()
    await stream.putSeeded(header.bytes, header.seed + 1)
    stream.end()
  },
  async idle (stream, header) {
    for (let round = 0; round < 2; round++) {
      if (round) {
        emit({ event: 'idle' })
        await new Promise((resolve) => setTimeout(resolve, header.idle_seconds * 1000))
      }
      await stream.putSeeded(header.bytes, header.seed + 2 + round)
      await stream.take(header.bytes)
    }
    stream.end()
    await stream.takeAll()
  },
  async abort (stream, header) {
    await stream.putSeeded(header.bytes, header.seed)
    await stream.line()
    if (header.aborter === 'acceptor') await stream.putCounted(Buffer.from('!'))
    await stream.takeAll()
  },
  async vanish (stream, header) {
    await stream.putSeeded(header.bytes, header.seed)
    await stream.take(header.bytes)
    emit({ waiting: true })
    await stream.takeAll()
  },
  async endless (stream, header) {
    await stream.putSeeded(header.bytes, header.seed)
    await stream.takeAll()
  }
}

async function converse (stream, conversation, started) {
  let error = null
  try {
    await conversation()
    const late = new Promise((resolve) => setTimeout(resolve, CLOSE_TIMEOUT_MS, 'late').unref())
    if (await Promise.race([stream.closed, late]) === 'late') error = 'libutp did not close after both directions ended'
    if (stream.error) throw stream.error
  } catch (caught) {
    error = caught.code || caught.message
  }
  const report = {
    sent: stream.sent.report(),
    received: stream.received.report(),
    eof: stream.eof,
    error,
    seconds: Number(process.hrtime.bigint() - started) / 1e9
  }
  process.stdout.write(JSON.stringify({ report }) + '\n', () => process.exit(error ? 1 : 0))
}

function setBuffers (socket, settings) {
  if (settings.receive_buffer_bytes) socket.setRecvBufferSize(settings.receive_buffer_bytes)
  if (settings.send_buffer_bytes) socket.setSendBufferSize(settings.send_buffer_bytes)
}

function listen (settings) {
  const server = utp.createServer({ allowHalfOpen: true }, (conn) => {
    const started = process.hrtime.bigint()
    const stream = new Stream(conn)
    converse(stream, async () => {
      const header = await stream.line()
      emit({ event: 'header', case: header.case })
      await SERVER[header.case](stream, header)
    }, started)
  })
  server.on('error', (error) => { emit({ error: String(error) }); process.exit(2) })
  server.listen(settings.port || 0, '127.0.0.1', () => {
    setBuffers(server, settings)
    emit({ port: server.address().port })
  })
}

function connect (host, port, header, settings) {
  const socket = utp({ allowHalfOpen: true })
  socket.on('error', (error) => { emit({ error: String(error) }); process.exit(2) })
  socket.bind(0, '127.0.0.1')
  setBuffers(socket, settings)
  const started = process.hrtime.bigint()
  const stream = new Stream(socket.connect(port, host))
  converse(stream, async () => {
    await stream.putLine(header)
    emit({ event: 'connected' })
    await CLIENT[header.case](stream, header)
  }, started)
}

process.stdin.on('end', () => process.exit(3))
process.stdin.resume()

const [command, ...rest] = process.argv.slice(2)
if (command === 'listen') {
  listen(JSON.parse(rest[0] || '{}'))
} else if (command === 'connect') {
  connect(rest[0], Number(rest[1]), JSON.parse(rest[2]), JSON.parse(rest[3] || '{}'))
} else {
  console.error('usage: peer.cjs listen [SETTINGS] | connect HOST PORT HEADER [SETTINGS]')
  process.exit(2)
}
