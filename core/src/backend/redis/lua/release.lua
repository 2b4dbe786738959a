-- Somebody waits, or it is no release of a hold.
-- Before anything is done: it would be done by half.
if is_moving() then return redis.error_reply('TRYAGAIN the slot is open for a move') end
local me = ARGV[2] .. '.' .. token
if value ~= token then
  local first = call('ZRANK', line, me) == 0
  call('ZREM', line, me)
  if reserved and call('GET', reserved) == token then call('DEL', reserved) end
  if ending == 'undone' then
    -- Taken, and lapsed before anybody heard of it: the next hears what this one would have heard.
    local was = call('HMGET', state, 'o', 'a')
    if was[1] == token and was[2] ~= '1' then call('HSET', state, 'o', '') end
  end
  if not value then
    advance(nil, 0)
  elseif first and type(value) == 'string' then
    forewarn(call('PTTL', key), 0)
  end
  return call('HGET', state, 'l') == token and 2 or 0
end
call('DEL', key)
local held, clears = true, ending == 'released'
if not clears then
  local was = call('HMGET', state, 'o', 'a')
  held = was[1] == token
  clears = held and ending == 'undone' and was[2] ~= '1'
end
note(clears)
advance(nil, 0)
return held and 1 or 3
