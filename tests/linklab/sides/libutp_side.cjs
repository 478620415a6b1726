// Either side of flows of libutp, through utp-native, which is found by NODE_PATH. What it reads and prints:
// sides/__init__.py.
//
//   node libutp_side.cjs sink|source SETTINGS
'use strict'

const utp = require('utp-native')

const UDP_BUFFER_BYTES = 4 << 20 // as in compat/bench
const CHUNK_BYTES = 64 << 10
const WRITES_AT_ONCE = 4
const SINK_MS = 50
const SOURCE_MS = 100

const [role, text] = process.argv.slice(2)
const settings = JSON.parse(text)

function now () {
  return Number(process.hrtime.bigint()) / 1e9
}

function say (message) {
  process.stdout.write(JSON.stringify(message) + '\n')
}

function cpuSeconds () {
  const used = process.cpuUsage()
  return (used.user + used.system) / 1e6
}

function setBuffers (socket) {
  socket.setRecvBufferSize(UDP_BUFFER_BYTES)
  socket.setSendBufferSize(UDP_BUFFER_BYTES)
}

function sink () {
  const counts = []
  const server = utp.createServer({ allowHalfOpen: true })
  server.on('connection', (stream) => {
    const number = counts.push(0) - 1
    stream.on('data', (chunk) => { counts[number] += chunk.length })
    stream.on('error', () => {})
  })
  server.listen(settings.port, settings.host, () => {
    setBuffers(server)
    say({ ready: true })
    setInterval(() => say({ t: now(), bytes: counts, cpu_seconds: cpuSeconds() }), SINK_MS)
  })
}

// One connection after the other, as in stream_side.py.
function send (socket, number) {
  if (number === settings.streams) return
  const stream = socket.connect(settings.port, settings.host)
  const chunk = Buffer.alloc(CHUNK_BYTES)
  const more = () => stream.write(chunk, (error) => { if (!error) more() })
  stream.on('error', (error) => say({ t: now(), stream: number, error: String(error) }))
  stream.on('connect', () => {
    for (let n = 0; n < WRITES_AT_ONCE; n++) more()
    send(socket, number + 1)
  })
}

function source () {
  const socket = utp({ allowHalfOpen: true })
  socket.bind(0, '0.0.0.0')
  setBuffers(socket)
  say({ ready: true })
  process.stdin.once('data', (line) => {
    const origin = JSON.parse(String(line)).origin
    setTimeout(() => {
      send(socket, 0)
      setInterval(() => say({ t: now(), stream: 0, cpu_seconds: cpuSeconds() }), SOURCE_MS)
    }, Math.max(0, (origin + settings.start - now()) * 1000))
    setTimeout(() => process.exit(0), Math.max(0, (origin + settings.end - now()) * 1000))
  })
}

if (role === 'sink') sink()
else source()
