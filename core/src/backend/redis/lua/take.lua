-- Somebody waits or holds it, or this one waited.
local ticket, me = tonumber(ticket), proc .. '.' .. token
local now_ms = math.floor(now / 1000)
local value = call('GET', key)
local left = 0
if value == token then
  -- Out of memory, a confirm goes through since it begins with this. A copy of it that comes late makes no lease shorter that
  -- was made longer since.
  if owner ~= token or call('PTTL', key) < tonumber(ttl) then call('PEXPIRE', key, ttl) end
  if owner ~= token then return own(0) end
  return {1, was[3], tonumber(call('HGET', state, 'a')), 0, token}
elseif value then
  left = call('PTTL', key)
else
  local kept = reserved and call('GET', reserved)
  if kept and kept ~= token then
    left = call('PTTL', reserved)
  elseif kept or not advance(me, ticket or 0) then
    call('SET', key, token, 'PX', ttl)
    if reserved then call('DEL', reserved) end
    -- Who was granted it was taken out of the line; who was not must still stand there, or the line was lost.
    return own(1, me)
  else
    left = reserved and RESERVED or CLAIM
  end
end

local also = call('HMGET', state, 'g', 'q', 'i', 's')
-- It was told of its turn, and came.
if reserved and also[1] == token then call('HSET', state, 'g', '') end
local kind = 1
if value then kind = (value == owner and 0) or (value == also[1] and 1) or 2 end
local fresh, rank, size = 0, 0, nil
if ticket then
  local latest, place = tonumber(also[2]) or 0, ticket
  if place == 0 then place = math.max(now, latest + 1) end
  fresh = call('ZADD', line, 'NX', string.format('%.0f', place), me)
  if fresh == 1 then
    if place > latest and call('HSET', state, 'q', string.format('%.0f', place)) == 1 then call('PEXPIRE', state, WEEK) end
  elseif ticket == 0 then
    place = tonumber(call('ZSCORE', line, me))
  end
  call('PEXPIRE', line, MINUTE)
  size = call('ZCARD', line)
  -- A newcomer is the last one.
  rank = (fresh == 1 and ticket == 0) and size - 1 or call('ZRANK', line, me)
  -- Who looks throws out those that died: else the line would grow for as long as one holds and others are killed that wait.
  if fresh == 0 and ticket ~= 0 and size > 1 and forget_dead(left, proc, rank < 2) then
    rank, size = call('ZRANK', line, me), call('ZCARD', line)
  end
  ticket = place
end
local shown, held = '', 0
if kind == 0 then shown, held = also[3] or '', now_ms - (tonumber(also[4]) or now_ms) end
return {0, left, rank, string.format('%.0f', ticket or 0), fresh, kind, shown, held, size or call('ZCARD', line), token}
