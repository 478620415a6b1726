// One side of a measurement over libutp. agreement.py describes what it says and hears; stream_side.py is its twin.
//
//   node utp_native_side.cjs listen|connect SETTINGS
//
// SETTINGS is JSON: kind ("bulk", "pingpong", "setup"), port to dial, seconds, size. utp-native is found through NODE_PATH.
'use strict'

const crypto = require('crypto')
const utp = require('utp-native')

const LOOPBACK = '127.0.0.1'
const UDP_BUFFER_BYTES = 4 << 20 // with the system's 208 KiB it collapses to 7 MB/s (docs/performance.md §7)
const CHUNK_BYTES = 64 << 10

const [role, text] = process.argv.slice(2)
const settings = JSON.parse(text)
const heard = { go: later(), stop: later() }
let reported = false

function later () {
  let keep
  const promise = new Promise((resolve) => { keep = resolve })
  promise.now = keep
  return promise
}

function emit (message) {
  process.stdout.write(JSON.stringify(message) + '\n')
}

function now () {
  return Number(process.hrtime.bigint()) / 1e9
}

class Watch {
  constructor () {
    this.cpu = process.cpuUsage()
    this.started = now()
  }

  stop () {
    const cpu = process.cpuUsage(this.cpu)
    return { started: this.started, ended: now(), cpu_seconds: (cpu.user + cpu.system) / 1e6 }
  }
}

function report (figures) {
  reported = true
  emit({ report: figures })
}

async function start () {
  emit({ ready: true })
  await heard.go
  return new Watch()
}

function write (stream, chunk) {
  return new Promise((resolve, reject) => stream.write(chunk, (error) => error ? reject(error) : resolve()))
}

const LISTEN = {
  async bulk (server) {
    const stream = await new Promise((resolve) => server.once('connection', resolve))
    const watch = await start()
    let bytes = 0
    stream.on('data', (chunk) => { bytes += chunk.length })
    await new Promise((resolve) => stream.once('end', resolve))
    report({ ...watch.stop(), bytes })
    stream.end()
  },
  async pingpong (server) {
    const stream = await new Promise((resolve) => server.once('connection', resolve))
    const watch = await start()
    stream.on('data', (chunk) => stream.write(chunk))
    await new Promise((resolve) => stream.once('end', resolve))
    report(watch.stop())
    stream.end()
  },
  async setup (server) {
    server.on('connection', (stream) => {
      stream.on('data', (chunk) => { stream.write(chunk); stream.end() })
    })
    const watch = await start()
    await heard.stop
    report(watch.stop())
  }
}

const CONNECT = {
  async bulk (dial) {
    const stream = await dial()
    const chunk = crypto.randomBytes(CHUNK_BYTES)
    const watch = await start()
    let bytes = 0
    const endsAt = watch.started + settings.seconds
    // Two writes are under way at any time, so that libutp need not wait for JavaScript.
    const sender = async () => {
      while (now() < endsAt) {
        await write(stream, chunk)
        bytes += chunk.length
      }
    }
    await Promise.all([sender(), sender()])
    stream.end()
    report({ ...watch.stop(), bytes })
  },
  async pingpong (dial) {
    const stream = await dial()
    const ping = crypto.randomBytes(settings.size)
    const trips = []
    const watch = await start()
    const endsAt = watch.started + settings.seconds
    let began = watch.started
    let missing = ping.length
    const done = later()
    stream.on('data', (chunk) => {
      missing -= chunk.length
      if (missing > 0) return
      const here = now()
      trips.push(here - began)
      began = here
      missing = ping.length
      if (here < endsAt) stream.write(ping)
      else done.now()
    })
    stream.write(ping)
    await done
    const took = watch.stop()
    stream.end()
    trips.sort((a, b) => a - b)
    report({
      ...took,
      count: trips.length,
      p50_us: trips[trips.length >> 1] * 1e6,
      p99_us: trips[Math.floor(trips.length * 0.99)] * 1e6
    })
  },
  async setup (dial) {
    const watch = await start()
    let count = 0
    while (now() < watch.started + settings.seconds) {
      const stream = await dial()
      const echoed = new Promise((resolve, reject) => { stream.once('data', resolve); stream.once('error', reject) })
      stream.write(Buffer.from('!'))
      await echoed
      stream.end()
      count++
    }
    report({ ...watch.stop(), count })
  }
}

function setBuffers (socket) {
  socket.setRecvBufferSize(UDP_BUFFER_BYTES)
  socket.setSendBufferSize(UDP_BUFFER_BYTES)
}

function fail (error) {
  process.stderr.write(String(error && error.stack ? error.stack : error) + '\n', () => process.exit(1))
}

function main () {
  if (role === 'listen') {
    const server = utp.createServer({ allowHalfOpen: true })
    server.on('error', fail)
    server.listen(0, LOOPBACK, () => {
      setBuffers(server)
      emit({ port: server.address().port })
    })
    LISTEN[settings.kind](server).catch(fail)
  } else {
    const socket = utp({ allowHalfOpen: true })
    socket.on('error', fail)
    socket.bind(0, LOOPBACK)
    setBuffers(socket)
    const dial = () => new Promise((resolve, reject) => {
      const stream = socket.connect(settings.port, LOOPBACK)
      stream.once('connect', () => resolve(stream))
      stream.once('error', reject)
    })
    CONNECT[settings.kind](dial).catch(fail)
  }
}

process.stdin.on('data', (words) => {
  for (const word of String(words).split(/\s+/)) if (heard[word]) heard[word].now()
})
process.stdin.on('end', () => process.exit(reported ? 0 : 2))
main()
