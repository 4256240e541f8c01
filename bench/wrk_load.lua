-- For wrk: one request from a file again and again; as many connections as wrk has, each of which waits a random time
-- before it asks where a mean is given. Prints one JSON object when it has ended.
--
--     wrk -t1 -c8 -d5 -s wrk_load.lua http://127.0.0.1:8000/predict -- BODY TYPE MEAN_WAIT_MS [NAME: VALUE]

local wait = 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  wrk.method = "POST"
  wrk.body = file:read("*a")
  file:close()
  wrk.headers["Content-Type"] = args[2]
  wait = tonumber(args[3])
  if args[4] then
    local name, value = args[4]:match("^(.-): (.*)$")
    wrk.headers[name] = value
  end
  math.randomseed(1)
  if wait > 0 then
    delay = function() return math.floor(-wait * math.log(1 - math.random()) + 0.5) end
  end
end

function done(summary, latency, requests)
  local failed = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %f, "bad": %d, "lost": %d, "p50_ms": %f, "p99_ms": %f}\n',
    summary.requests, summary.duration / 1e6, failed.status,
    failed.connect + failed.read + failed.write + failed.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
