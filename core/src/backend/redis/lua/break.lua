-- ARGV: this break's name, by which it is known if it is asked for again: by then the next one may hold it.
-- 1 if somebody held it, else 0. The owner field stays: the next hold hears "abandoned".
-- It would be done by half.
if is_moving() then return redis.error_reply('TRYAGAIN the slot is open for a move') end
local was = call('HMGET', state, 'o', 'p', 'b')
if was[3] == ARGV[1] then return 1 end
local value = call('GET', key)
if not value then
  advance(nil, 0)
  return 0
end
call('DEL', key)
if call('HSET', state, 'b', ARGV[1]) == 1 then call('PEXPIRE', state, WEEK) end
if was[1] == value and was[2] then tell(was[2], 'L ' .. value) end
advance(nil, 0)
return 1
