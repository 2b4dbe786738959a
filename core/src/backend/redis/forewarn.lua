-- The lease has become shorter: who waits must look sooner than it means to.
local left = call('PTTL', key)
-- Somebody else's key without an expiry ends when it ends.
if left ~= -1 then forewarn(math.max(left, 0), 0) end
return 1
