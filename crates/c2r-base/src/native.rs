//! Two calls into the C library that a *program* makes once at its start: how the allocator treats
//! large tensors, and loading libtorch's CUDA part. Libraries never make them.
#![expect(
    unsafe_code,
    reason = "mallopt and loading a library have no safe wrapper; both are called with constants and checked"
)]

/// Makes glibc keep freed memory instead of returning it to the system.
///
/// By default every large tensor is mapped and unmapped, and each new one page-faults: half of the
/// time of a small network on the CPU (docs/performance.md). Returns whether the setting was taken;
/// on other C libraries it does nothing.
pub fn keep_large_allocations() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // No mmap for large blocks, no trimming, one arena (extra arenas are limited to 64 MiB each).
        const GROW_BY: libc::c_int = 64 << 20;
        // SAFETY: mallopt takes two integers and has no preconditions.
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

/// Loads `libtorch_cuda.so`, which the linker drops because no symbol of it is named, so that
/// libtorch can find a GPU. Must come before anything asks about CUDA: the answer is cached.
///
/// # Errors
/// The loader's message where the library or one of its dependencies is missing, which is
/// normal on a machine with the CPU part of libtorch.
pub fn load_cuda() -> Result<(), String> {
    #[cfg(target_os = "linux")]
    {
        use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
        // SAFETY: the library belongs to the libtorch that is linked, whose initializers may run at any time.
        let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_LAZY | RTLD_GLOBAL) };
        // Kept open for the life of the process.
        library.map(std::mem::forget).map_err(|error| error.to_string())
    }
    #[cfg(not(target_os = "linux"))]
    Err("CUDA is only looked for on Linux".to_owned())
}
