-- 1 if somebody held it, else 0. The owner field stays: the next hold hears "abandoned".
-- It would be done by half.
if is_moving() then return redis.error_reply('TRYAGAIN the slot is open for a move') end
local value = call('GET', key)
if not value then
  advance(nil, 0)
  return 0
end
local was = call('HMGET', state, 'o', 'p')
call('DEL', key)
if was[1] == value and was[2] then tell(was[2], 'L ' .. value) end
advance(nil, 0)
return 1
