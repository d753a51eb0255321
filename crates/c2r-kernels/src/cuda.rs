//! What became of the CUDA kernels, and what their compiler says without a GPU.

use std::ffi::{CString, c_char};

use crate::{KernelError, cuda_state, taken, text};

unsafe extern "C" {
    fn c2r_cuda_log(nvrtc: *const c_char, size: *const i64, capability: i32, log: *mut *mut c_char) -> *mut c_char;
    fn c2r_cuda_shared_memory(size: *const i64, available: i32) -> *mut c_char;
    fn c2r_cuda_trial_margin(size: *const i64, margin: *mut f64) -> *mut c_char;
}

/// The lines of [`cuda_state`] of kernels that were wanted and cannot be used, each with the reason.
pub fn unusable() -> Vec<String> {
    cuda_state().into_iter().filter(|line| is_unusable(line)).collect()
}

fn is_unusable(line: &str) -> bool {
    line.contains(": libtorch's operators")
}

/// What the compiler says of the kernels of a size for GPUs of a compute capability (see [`crate::cuda_ptx`]): the registers and
/// the spills of each. Needs no GPU.
///
/// # Errors
/// As [`crate::cuda_ptx`].
pub fn compiler_log(nvrtc: &str, size: [i64; 3], capability: i32) -> Result<String, KernelError> {
    let nvrtc = CString::new(nvrtc).map_err(|error| KernelError(error.to_string()))?;
    let mut log = std::ptr::null_mut();
    // SAFETY: the text and the three numbers live through the call; what comes back is null or of `strdup`.
    unsafe {
        match taken(c2r_cuda_log(nvrtc.as_ptr(), size.as_ptr(), capability, &mut log)) {
            Some(error) => Err(error),
            None => Ok(text(log).unwrap_or_default()),
        }
    }
}

/// Checks that kernels of a size (see [`crate::cuda_ptx`]) can run on a GPU with `available` bytes of shared memory for a block
/// of threads.
///
/// # Errors
/// If they need more, with both numbers.
pub fn fits_shared_memory(size: [i64; 3], available: i32) -> Result<(), KernelError> {
    // SAFETY: the three numbers live through the call; what comes back is null or of `strdup`.
    unsafe { taken(c2r_cuda_shared_memory(size.as_ptr(), available)).map_or(Ok(()), Err) }
}

/// What kernels of a size (see [`crate::cuda_ptx`]) are compared on before they are used, computed on the CPU: the least distance
/// from zero of a value that enters ReLU where a gradient comes from, and the share of the windows from which one comes.
///
/// Rounding must not move such a value to the other side, or right kernels are taken for wrong ones.
///
/// # Errors
/// The message of libtorch for a size that no kernel has.
pub fn trial_margin(size: [i64; 3]) -> Result<[f64; 2], KernelError> {
    let mut margin = [0.0; 2];
    // SAFETY: the three numbers and the two places live through the call; what comes back is null or of `strdup`.
    unsafe { taken(c2r_cuda_trial_margin(size.as_ptr(), margin.as_mut_ptr())).map_or(Ok(margin), Err) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// In a process that has loaded no NVRTC, which the loader would find without a folder.
    #[test]
    fn nvrtc_is_looked_for_beside_libtorch() {
        // A libtorch for GPUs has one.
        if let Err(error) = crate::cuda_ptx("", [0, 32, 32], 80) {
            let error = error.to_string();
            let (_, tried) = error.split_once("loaded: ").unwrap();
            let first = Path::new(tried.split(", ").next().unwrap());
            assert!(first.ends_with("libcaffe2_nvrtc.so"), "{error}");
            assert!(first.with_file_name("libtorch_cpu.so").exists(), "{error}");
        }
    }

    #[test]
    fn a_line_says_whether_its_kernel_is_used() {
        let of = "cuda:0, features of 8x8";
        assert!(!is_unusable(&format!("{of}: fused kernels, compared with libtorch's operators")));
        assert!(is_unusable(&format!("{of}: libtorch's operators, because its output differs")));
        assert!(is_unusable(&format!("{of}: libtorch's operators until there is memory, because CUDA out of memory")));
    }
}
