"""What stat(2) may tell of a file, for hypothesis."""

from __future__ import annotations

import os
import stat

from hypothesis import strategies as st

S = 1_000_000_000  # nanoseconds
u32, u63 = st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1)
kinds = st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO])
times_ns = st.integers(-(2**33) * S, 2**33 * S)


@st.composite
def stat_results(draw: st.DrawFn) -> os.stat_result:
    """Any that stat(2) may give, and that a reply to the kernel may carry."""
    mode = draw(kinds) | draw(st.integers(0, 0o7777))
    ns = [draw(times_ns) for _ in range(3)]
    more = dict(zip(("st_atime_ns", "st_mtime_ns", "st_ctime_ns"), ns, strict=True))
    more |= {"st_blksize": draw(u32), "st_blocks": draw(u63), "st_rdev": draw(st.integers(0, 2**44))}
    ino, device, nlink, uid, gid = draw(u63), draw(u32), draw(u32), draw(u32), draw(u32)
    whole = (time // S for time in ns)
    return os.stat_result((mode, ino, device, nlink, uid, gid, draw(u63), *whole), more)
