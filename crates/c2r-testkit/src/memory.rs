//! How the allocator treats large tensors, for programs that measure time or memory.
#![expect(unsafe_code, reason = "mallopt has no safe wrapper; it is called with constants and checked")]

/// Makes glibc keep freed memory instead of returning it to the system. Call it first of all, before there are threads that
/// allocate.
///
/// By default every large tensor is mapped and unmapped, and each new one page-faults: half of the
/// time of a small network on the CPU (docs/performance.md). Returns whether the setting was taken;
/// on other C libraries it does nothing. `c2r` itself allocates through mimalloc.
pub fn keep_large_allocations() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // No mmap for large blocks, no trimming, one arena (extra arenas are limited to 64 MiB each).
        const GROW_BY: libc::c_int = 64 << 20;
        // SAFETY: mallopt takes two integers. glibc calls it unsafe beside other threads, because those that allocate read the
        // settings without its lock: callers have none that do yet.
        unsafe {
            libc::mallopt(libc::M_MMAP_MAX, 0) == 1
                && libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX) == 1
                && libc::mallopt(libc::M_TOP_PAD, GROW_BY) == 1
                && libc::mallopt(libc::M_ARENA_MAX, 1) == 1
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    false
}
