-- As post.lua, with a pause of random length before each request: the third word is its mean, in milliseconds.
dofile(debug.getinfo(1, "S").source:match("^@(.*)paced%.lua$") .. "post.lua")
local post = init
function init(args)
  post(args)
  mean_ms = tonumber(args[2])
end

function delay()
  return math.random(0, 2 * mean_ms)
end
