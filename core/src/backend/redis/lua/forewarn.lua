-- The lease has become shorter: who waits must look sooner than it means to.
local left = call('PTTL', key)
-- Somebody else's key without an expiry ends when it ends.
if left ~= -1 then
  left = math.max(left, 0)
  local told = forewarn(left, 0)
  if told then forewarn_more(left, told, told) end
end
return 1
