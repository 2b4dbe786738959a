-- {kind, last fence, info, held ms, waiters}; kind: 0 free, 1 held, 2 being handed over, 3 held by another program, 4 abandoned
local value = call('GET', key)
local was = call('HMGET', state, 'o', 'g', 'f', 'i', 's')
local clock = call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local kind = (was[1] and was[1] ~= '') and 4 or 0
if value then kind = (value == was[1] and 1) or (value == was[2] and 2) or 3 end
local info, held = '', 0
if kind == 1 or kind == 4 then info = was[4] or '' end
if kind == 1 then held = now_ms - (tonumber(was[5]) or now_ms) end
return {kind, was[3] or '0', info, held, call('ZCARD', line)}
