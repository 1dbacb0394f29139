"""The steps that Redis must do as one, as scripts that run inside the server.

Each may be repeated: a repetition after a lost reply changes nothing and answers the same.
"""

from __future__ import annotations

from hashlib import sha1
from typing import NamedTuple


class Script(NamedTuple):
    """A script and the name the server knows it by."""

    body: bytes
    name: bytes


def _script(body: str) -> Script:
    text = body.strip().encode()
    return Script(text, sha1(text).hexdigest().encode())


ABSENT = b""
"""To :data:`PUT`: only where nothing is stored."""

ANY = b"*"
"""To :data:`PUT`: whatever is stored."""

PUT = _script("""
local there = redis.call('EXISTS', KEYS[1]) == 1
local tag = redis.call('GET', KEYS[2])
if there and tag == ARGV[2] then return 1 end
if ARGV[3] ~= '*' then
  local now = ''
  if there then
    now = tag or 'sha1:' .. redis.sha1hex(redis.call('GET', KEYS[1]))
  end
  if now ~= ARGV[3] then return 0 end
end
if ARGV[4] == '0' then
  redis.call('MSET', KEYS[1], ARGV[1], KEYS[2], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[4])
  redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[4])
end
return 1
""")
"""Keys: value, version. Arguments: the value, its new version, the version that must be stored
(or :data:`ABSENT`, :data:`ANY`), milliseconds to live or 0. Returns 1, or 0 when another version
is stored."""

DELETE = _script("""
if redis.call('EXISTS', KEYS[1]) == 0 then return 1 end
local now = redis.call('GET', KEYS[2])
if not now then now = 'sha1:' .. redis.sha1hex(redis.call('GET', KEYS[1])) end
if now ~= ARGV[1] then return 0 end
redis.call('UNLINK', KEYS[1], KEYS[2])
return 1
""")
"""Keys: value, version. Argument: the version that must be stored. Returns 0 when another is."""

READ = _script("""
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local tag = redis.call('GET', KEYS[2])
if not tag then tag = 'sha1:' .. redis.sha1hex(redis.call('GET', KEYS[1])) end
local found = {tag}
if tag == ARGV[1] or (ARGV[2] ~= '' and tag ~= ARGV[2]) then return found end
for i = 3, #ARGV, 2 do
  found[#found + 1] = redis.call('GETRANGE', KEYS[1], ARGV[i], ARGV[i + 1])
end
return found
""")
"""Keys: value, version. Arguments: a version whose bytes are not wanted, the only version whose
bytes are wanted (either may be empty), then first and last byte of each range. Returns nothing
where nothing is stored, else the version and the ranges."""

HOLD = _script("""
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 1
end
if holder or ARGV[3] == '0' then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
""")
"""Key: the lock. Arguments: the holder's token, milliseconds, whether to take a free lock (else
only to prolong it). Returns whether the token holds it."""

RELEASE = _script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
""")
"""Key: the lock. Argument: the holder's token."""
