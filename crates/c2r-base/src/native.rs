//! The call into the system's loader that a *program* makes once at its start: loading libtorch's CUDA part. Libraries never
//! make it.
#![expect(unsafe_code, reason = "loading a library has no safe wrapper; it is called with a constant and checked")]

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
