"""Commands to a Redis server: one by its name, or a script that runs inside the server.

A script is a step that Redis must do as one. Each may be repeated: a repetition after a lost reply
changes nothing and returns the same.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Any, NamedTuple

from tensorstash.drivers.redis.parser import SMALL_REPLY, ReplyLimit
from tensorstash.drivers.redis.replies import Validator


class Script(NamedTuple):
    """A script and the name the server knows it by."""

    body: bytes
    name: bytes


def _script(body: str) -> Script:
    text = body.strip().encode()
    return Script(text, sha1(text).hexdigest().encode())


class RedisCommand(NamedTuple):
    """``args`` as they are sent; ``key`` decides about the node of a cluster (empty: any);
    ``validator`` says whether a reply can be one to it; ``script`` is what ``args`` run, for a
    server that does not know it yet; ``limit`` is what the reply may take."""

    key: bytes
    args: tuple[bytes, ...]
    validator: Validator
    script: Script | None = None
    limit: ReplyLimit = SMALL_REPLY

    def spelled_out(self) -> RedisCommand:
        """The same with the script's text instead of its name."""
        if self.script is None:
            return self
        return self._replace(args=(b"EVAL", self.script.body, *self.args[2:]))


def run(
    script: Script,
    validator: Validator,
    keys: tuple[bytes, ...],
    *args: bytes,
    limit: ReplyLimit = SMALL_REPLY,
) -> RedisCommand:
    """The command that runs ``script``."""
    count = b"%d" % len(keys)
    sent = (b"EVALSHA", script.name, count, *keys, *args)
    return RedisCommand(keys[0], sent, validator, script, limit)


def command(
    name: bytes, validator: Validator, key: bytes, *args: bytes, limit: ReplyLimit = SMALL_REPLY
) -> RedisCommand:
    """The command ``name key args...``."""
    return RedisCommand(key, (name, key, *args), validator, None, limit)


def size_of(value: Any) -> int:
    """The bytes in a reply."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, list):
        return sum(len(each) if type(each) is bytes else size_of(each) for each in value)
    return 0


# -- the scripts -----------------------------------------------------------------------


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

PATCH = _script("""
local found = {}
local at = 2
for k = 1, #KEYS, 2 do
  local size, fill, count = tonumber(ARGV[at + 1]), ARGV[at + 2], tonumber(ARGV[at + 3])
  local there = redis.call('STRLEN', KEYS[k])
  if there == 0 and redis.call('EXISTS', KEYS[k]) == 0 then
    if fill == '' then
      redis.call('SETRANGE', KEYS[k], size - 1, '\\0')
    else
      redis.call('SET', KEYS[k], string.rep(fill, size / #fill))
    end
    there = size
  end
  if there == size then
    for i = at + 4, at + 2 + 2 * count, 2 do
      redis.call('SETRANGE', KEYS[k], ARGV[i], ARGV[i + 1])
    end
    if ARGV[1] == '0' then
      redis.call('SET', KEYS[k + 1], ARGV[at])
    else
      redis.call('PEXPIRE', KEYS[k], ARGV[1])
      redis.call('SET', KEYS[k + 1], ARGV[at], 'PX', ARGV[1])
    end
    there = -1
  end
  found[#found + 1] = there
  at = at + 4 + 2 * count
end
return found
""")
"""Keys: a value and its version, several times. Arguments: milliseconds to live or 0; then for each
value its new version, its bytes, what it is filled with where nothing is stored (empty: zeros), how
many parts follow, and where each begins and what it becomes. Returns for each -1, or the bytes that
are stored where these are others: then nothing of it is changed."""

GATHER = _script("""
local found = {}
local at = 2
for k = 1, #KEYS do
  local count = tonumber(ARGV[at])
  if redis.call('EXISTS', KEYS[k]) == 0 then
    found[k] = false
  else
    local parts = {}
    for i = 1, count do
      local start = tonumber(ARGV[at + i])
      parts[i] = redis.call('GETRANGE', KEYS[k], start, start + ARGV[1] - 1)
    end
    found[k] = table.concat(parts)
  end
  at = at + 1 + count
end
return found
""")
"""Keys: values. Arguments: the bytes of a part; then for each value how many parts, and where each
begins. Returns for each nothing where nothing is stored, else its parts, one behind another."""

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
