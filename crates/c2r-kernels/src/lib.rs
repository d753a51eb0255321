//! Operators that libtorch lacks, in C++ on its headers (`native/`), and a pass that puts them into TorchScript models.
//!
//! * [`norm_relu_pool`] is what the ConvNet of the dataset distillation field does between two convolutions: instance
//!   normalization, ReLU and 2x2 average pooling, in one pass over each plane. libtorch's three operators read and write
//!   the features several times from memory; this reads them once and writes a quarter.
//! * [`block`] is that with the convolution before it. For images of one or three channels there are kernels that never write
//!   the large output of the convolution; behind the first block, the CPU convolves by Winograd's minimal filtering.
//! * [`count`] says how many operators of libtorch some code runs, and what it copies and reads back; [`trace()`] writes when
//!   each of them ran.
//!
//! The first two are differentiable; TorchScript knows them as `c2r::norm_relu_pool` and `c2r::block`. The fast forms are for
//! float32 on the CPU and on a GPU, where [`block`] computes in the layout that convolutions like (channels last) and leaves out
//! the bias that the normalization subtracts. Everything else, second derivatives among it, runs on libtorch's operators, with
//! the same result up to rounding, which is coarser on a GPU: the kernel for images convolves in fp32 (23 bits after the point),
//! libtorch in TF32 (10 bits) unless [`allow_tf32`] switched it off. docs/performance.md has the measurements.
//!
//! The CUDA kernels are compiled by NVRTC when an image size is first met and compared with libtorch's operators on noise
//! before they are used; if anything fails, libtorch's operators are used, and [`cuda_state`] says why.
#![expect(
    unsafe_code,
    reason = "calls of our own C++, which catches its exceptions (where none is expected, `noexcept` ends the process) and \
              returns owned tensors and bytes"
)]

pub mod count;
pub mod cuda;
mod precision;
mod trace;

use std::ffi::{CStr, CString, c_char};

pub use precision::{Bf16, FloatFormat, allow_tf32, precision, precision_names};
pub use trace::trace;

use tch::Tensor;
use torch_sys::C_tensor;

/// The pin of the workspace.
const TCH: &str = "0.24.0";

/// What the C++ code said: the message of the exception that it caught.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelError(String);

impl std::fmt::Display for KernelError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for KernelError {}

unsafe extern "C" {
    safe fn c2r_vectors() -> i32;
    safe fn c2r_libtorch(major: &mut i32, minor: &mut i32);
    fn c2r_norm_relu_pool(
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        eps: f64,
        message: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn c2r_block(
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        norm_weight: *const C_tensor,
        norm_bias: *const C_tensor,
        eps: f64,
        message: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn c2r_convolution_backward(
        gradient: *const C_tensor,
        x: *const C_tensor,
        weight: *const C_tensor,
        of_x: bool,
        of_weight: bool,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn c2r_sgd_step(
        parameters: *const *const C_tensor,
        gradients: *const *const C_tensor,
        buffers: *const *const C_tensor,
        n: usize,
        lr: f64,
        momentum: f64,
        weight_decay: f64,
        message: *mut *mut c_char,
    );
    fn c2r_cuda_state() -> *mut c_char;
    fn c2r_cuda_ptx(nvrtc: *const c_char, size: *const i64, capability: i32, message: *mut *mut c_char) -> *mut c_char;
    fn c2r_script(
        names: *const *const c_char,
        tensors: *const *const C_tensor,
        n_parameters: usize,
        n: usize,
        forward: *const c_char,
        out_length: *mut usize,
        message: *mut *mut c_char,
    ) -> *mut c_char;
    fn c2r_tune_torchscript(
        bytes: *const c_char,
        length: usize,
        out_length: *mut usize,
        n_replaced: *mut usize,
        message: *mut *mut c_char,
    ) -> *mut c_char;
}

/// A text, which is freed; `None` for null.
///
/// # Safety
/// `text` is null or what C's `strdup` made.
unsafe fn text(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: see above; it is read before it is freed.
    unsafe {
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::free(text.cast());
        Some(owned)
    }
}

/// [`text`] of an error.
///
/// # Safety
/// As there.
unsafe fn taken(message: *mut c_char) -> Option<KernelError> {
    // SAFETY: the same conditions.
    unsafe { text(message) }.map(KernelError)
}

/// Versions that every artefact records: of tch, and of the libtorch that this crate was compiled for, `2.11`. Its patch
/// releases are not told apart.
pub fn versions() -> [(&'static str, String); 2] {
    let (mut major, mut minor) = (0, 0);
    c2r_libtorch(&mut major, &mut minor);
    [("tch", TCH.to_owned()), ("libtorch", format!("{major}.{minor}"))]
}

/// The vector instructions that the CPU kernels use: `AVX-512`, `AVX2` or `none`, which means what the compiler chooses for any
/// processor. The environment variable `ATEN_CPU_CAPABILITY` (`avx2` or `default`) limits them, as it limits libtorch.
pub fn vectors() -> &'static str {
    match c2r_vectors() {
        2 => "AVX-512",
        1 => "AVX2",
        _ => "none",
    }
}

/// What became of the CUDA kernels, a line for each device and size that was met, such as
/// `cuda:0, 32x32: fused kernels, compared with libtorch's operators`.
pub fn cuda_state() -> Vec<String> {
    // SAFETY: the text is one of `strdup`.
    let lines = unsafe { text(c2r_cuda_state()) };
    lines.iter().flat_map(|lines| lines.lines()).map(str::to_owned).collect()
}

/// CUDA kernels as PTX. Needs no GPU.
///
/// * `nvrtc`: path of the library, or a name that the loader finds; empty for the one of libtorch.
/// * `size`: channels, height and width. 0 channels: the kernels of [`norm_relu_pool`] for features of any number of channels,
///   with even sides. 1 or 3: those of [`block`] for images of up to 32x32, with sides that are multiples of 4.
/// * `capability`: of the GPU, 90 for 9.0. The code is for the largest architecture up to it that NVRTC knows; a driver compiles it
///   further.
///
/// # Errors
/// If NVRTC cannot be loaded or knows only newer GPUs, and what it says of the source.
pub fn cuda_ptx(nvrtc: &str, size: [i64; 3], capability: i32) -> Result<String, KernelError> {
    let nvrtc = CString::new(nvrtc).map_err(|error| KernelError(error.to_string()))?;
    let mut message = std::ptr::null_mut();
    // SAFETY: the text and the three numbers live through the call; what comes back is null or of `strdup`.
    unsafe {
        let ptx = c2r_cuda_ptx(nvrtc.as_ptr(), size.as_ptr(), capability, &mut message);
        match taken(message) {
            Some(error) => Err(error),
            None => Ok(text(ptx).unwrap_or_default()),
        }
    }
}

/// 2x2 average pooling of ReLU of the instance normalization of `x`; sizes that are odd are rounded down.
///
/// * `x`: float `[N, C, H, W]`; `weight` and `bias`: `[C]`, on the same device.
/// * `eps`: added to the variance.
///
/// Returns `[N, C, H / 2, W / 2]`. Gradients of all three are exact, second ones included.
///
/// # Errors
/// Shapes, dtypes or devices that do not fit, with the message of libtorch.
pub fn norm_relu_pool(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor, KernelError> {
    let mut message = std::ptr::null_mut();
    // SAFETY: the three are live tensors; what comes back is a new one, which the wrapper frees, or null and a message.
    unsafe {
        let out = c2r_norm_relu_pool(x.as_ptr(), weight.as_ptr(), bias.as_ptr(), eps, &mut message);
        match taken(message) {
            Some(error) => Err(error),
            None => Ok(Tensor::from_ptr(out)),
        }
    }
}

/// [`norm_relu_pool`] of the convolution of `x` with padding 1 and stride 1.
///
/// * `x`: float `[N, C, H, W]`, normalized images or the features of a block before.
/// * `convolution`: weight `[F, C, 3, 3]` and bias `[F]`; `norm`: weight and bias `[F]`.
/// * `eps`: added to the variance.
///
/// Returns `[N, F, H / 2, W / 2]`. Images have a kernel of their own: on the CPU grey ones 8 or 32 wide and coloured ones 32, 64
/// or 128 wide, on a GPU those of up to 32x32 with sides that are multiples of 4. Features of a block before have one on a CPU
/// with AVX2: those 8, 16, 32 or 64 wide, of even height, with C and F multiples of 4 and `H * W` a multiple of 32. It convolves
/// by F(2x2, 3x3), Winograd's minimal filtering (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016),
/// with errors of the size of float rounding; each image is computed alone, so the images beside it change no bit.
///
/// The bias has no effect, because the normalization subtracts it; its gradient is exactly 0 in the fast forms.
///
/// # Errors
/// As [`norm_relu_pool`].
pub fn block(
    x: &Tensor,
    convolution: (&Tensor, &Tensor),
    norm: (&Tensor, &Tensor),
    eps: f64,
) -> Result<Tensor, KernelError> {
    let mut message = std::ptr::null_mut();
    let [weight, bias, norm_weight, norm_bias] =
        [convolution.0, convolution.1, norm.0, norm.1].map(|tensor| tensor.as_ptr());
    // SAFETY: as in `norm_relu_pool`.
    unsafe {
        let out = c2r_block(x.as_ptr(), weight, bias, norm_weight, norm_bias, eps, &mut message);
        match taken(message) {
            Some(error) => Err(error),
            None => Ok(Tensor::from_ptr(out)),
        }
    }
}

/// Gradients of a 3x3 convolution with padding 1, stride 1 and a bias: of `x`, and of `weight` (with the bias's computed,
/// too), each where it is wanted. This is the part of a backward pass that no other kernel can shorten, to measure it.
///
/// * `gradient`: of the output, float `[N, F, H, W]`; `x`: `[N, C, H, W]`; `weight`: `[F, C, 3, 3]`.
///
/// # Errors
/// Shapes, dtypes or devices that do not fit, with the message of libtorch.
pub fn convolution_backward(
    gradient: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    wanted: [bool; 2],
) -> Result<[Option<Tensor>; 2], KernelError> {
    let mut out = [std::ptr::null_mut(); 2];
    // SAFETY: the three are live tensors; `out` has two places, which get new tensors, or null, or nothing and a message.
    unsafe {
        let [gradient, x, weight] = [gradient, x, weight].map(|tensor| tensor.as_ptr());
        match taken(c2r_convolution_backward(gradient, x, weight, wanted[0], wanted[1], out.as_mut_ptr())) {
            Some(error) => Err(error),
            None => Ok(out.map(|tensor| (!tensor.is_null()).then(|| Tensor::from_ptr(tensor)))),
        }
    }
}

/// One step of stochastic gradient descent over all parameters p with gradients g and buffers v, in place and in a handful of
/// operators: `v <- momentum v + (g + weight_decay p)`, `p <- p - lr v`.
///
/// As many of each, of the same shapes, dtypes and devices. Nothing is tracked: call it under `tch::no_grad_guard`.
///
/// # Errors
/// Numbers or shapes that differ, with the message of libtorch.
pub fn sgd_step(
    parameters: &[&Tensor],
    gradients: &[&Tensor],
    buffers: &[&Tensor],
    [lr, momentum, weight_decay]: [f64; 3],
) -> Result<(), KernelError> {
    let n = parameters.len();
    if [gradients.len(), buffers.len()] != [n, n] {
        let lengths = format!("{n} parameters, {} gradients and {} buffers", gradients.len(), buffers.len());
        return Err(KernelError(lengths));
    }
    let lists = [parameters, gradients, buffers]
        .map(|list| list.iter().map(|tensor| tensor.as_ptr()).collect::<Vec<*const C_tensor>>());
    let [parameters, gradients, buffers] = lists.each_ref().map(Vec::as_ptr);
    let mut message = std::ptr::null_mut();
    // SAFETY: each list has `n` live tensors, of which the C++ code makes handles of its own.
    unsafe {
        c2r_sgd_step(parameters, gradients, buffers, n, lr, momentum, weight_decay, &mut message);
        taken(message).map_or(Ok(()), Err)
    }
}

/// A TorchScript archive in which every instance normalization (or group normalization with a group per channel) that is
/// followed by ReLU and 2x2 average pooling is one operator, and how many were replaced. `None` if there are none.
///
/// The model is switched to evaluation and frozen: its parameters become constants, and submodules are inlined. The
/// archive can be loaded by a program that links this crate.
///
/// # Errors
/// The message of libtorch if `archive` is not a TorchScript model, or cannot be frozen.
pub fn tune_torchscript(archive: &[u8]) -> Result<Option<(Vec<u8>, usize)>, KernelError> {
    let (mut length, mut n_replaced, mut message) = (0, 0, std::ptr::null_mut());
    // SAFETY: the pointer and the length are those of a slice; what comes back is as `bytes` wants it.
    unsafe {
        let out =
            c2r_tune_torchscript(archive.as_ptr().cast(), archive.len(), &mut length, &mut n_replaced, &mut message);
        bytes(out, length, message).map(|archive| archive.map(|archive| (archive, n_replaced)))
    }
}

/// A TorchScript archive of a model with these tensors and this method, which PyTorch loads with `torch.jit.load`.
///
/// * `parameters`, `buffers`: by name; the parts before the last point are the names of submodules, as in a `state_dict`.
/// * `forward`: its text, such as `def forward(self, x):\n    return torch.relu(x)\n`.
///
/// # Errors
/// The message of libtorch if it cannot compile the text.
pub fn torchscript(
    parameters: &[(String, Tensor)],
    buffers: &[(String, Tensor)],
    forward: &str,
) -> Result<Vec<u8>, KernelError> {
    let c_text = |text: &str| CString::new(text).map_err(|error| KernelError(error.to_string()));
    let all = || parameters.iter().chain(buffers);
    let texts = all().map(|(name, _)| c_text(name)).collect::<Result<Vec<_>, _>>()?;
    let names: Vec<*const c_char> = texts.iter().map(|name| name.as_ptr()).collect();
    let tensors: Vec<*const C_tensor> = all().map(|(_, tensor)| tensor.as_ptr()).collect();
    let forward = c_text(forward)?;
    let (mut length, mut message) = (0, std::ptr::null_mut());
    // SAFETY: the lists have one live text and tensor for each of `tensors.len()`; what comes back is as `bytes` wants it.
    unsafe {
        let (names, n_parameters, n) = (names.as_ptr(), parameters.len(), tensors.len());
        let out = c2r_script(names, tensors.as_ptr(), n_parameters, n, forward.as_ptr(), &mut length, &mut message);
        bytes(out, length, message).map(Option::unwrap_or_default)
    }
}

/// `length` bytes, which are freed; `None` for null without a message.
///
/// # Safety
/// `out` is null or `length` bytes of C's `malloc`; `message` as in [`text`].
unsafe fn bytes(out: *mut c_char, length: usize, message: *mut c_char) -> Result<Option<Vec<u8>>, KernelError> {
    // SAFETY: see above; the bytes are copied, then freed.
    unsafe {
        if let Some(error) = taken(message) {
            return Err(error);
        }
        if out.is_null() {
            return Ok(None);
        }
        let bytes = std::slice::from_raw_parts(out.cast::<u8>(), length).to_vec();
        libc::free(out.cast());
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use c2r_testkit::{assert_close, relative_error, toys};
    use tch::{Kind, Tensor};

    use super::*;

    const EPS: f64 = 1e-5;

    fn plain(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
        x.instance_norm(Some(weight), Some(bias), None::<&Tensor>, None::<&Tensor>, true, 0.1, EPS, false)
            .relu()
            .avg_pool2d([2i64, 2], [2i64, 2], [0i64, 0], false, true, None::<i64>)
    }

    fn fused(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
        norm_relu_pool(x, weight, bias, EPS).unwrap()
    }

    /// `[N, 4, height, width]` around zero, weights and biases of both signs, all of which want gradients.
    fn inputs(height: i64, width: i64) -> [Tensor; 3] {
        let x = toys::images(3, [4, height, width]) - 0.5;
        let weight = Tensor::from_slice(&[0.7f32, -1.3, 0.0, 2.0]);
        let bias = Tensor::from_slice(&[0.3f32, 0.1, 0.4, -0.5]);
        [x, weight, bias].map(|tensor| tensor.set_requires_grad(true))
    }

    /// A sum with another weight for each value, so that a misplaced one shows.
    fn weighted(y: &Tensor) -> Tensor {
        let weights = (Tensor::arange(y.numel() as i64, (Kind::Float, y.device())) * 0.754_877_666).frac() - 0.4;
        (y * weights.view_as(y)).sum(Kind::Float)
    }

    /// By hand: mean 2.5 and deviation sqrt(1.25); what is above the mean passes ReLU.
    #[test]
    fn a_plane_by_hand() {
        let x = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).view([1, 1, 2, 2]);
        let one = Tensor::from_slice(&[1f32]);
        let y = fused(&x, &one, &Tensor::from_slice(&[0f32]));
        assert_eq!(y.size(), [1, 1, 1, 1]);
        let expected = (0.5 + 1.5) / (1.25f64 + EPS).sqrt() / 4.0;
        assert!((y.double_value(&[0, 0, 0, 0]) - expected).abs() < 1e-7);
    }

    /// Widths that the compiler knows, others, odd sizes.
    #[test]
    fn values_and_gradients_are_those_of_the_plain_operators() {
        for (height, width) in [(32, 32), (64, 64), (16, 16), (8, 8), (4, 4), (2, 2), (7, 5), (3, 2), (9, 48)] {
            let [x, weight, bias] = inputs(height, width);
            let what = format!("{height}x{width}");
            let (ours, theirs) = (fused(&x, &weight, &bias), plain(&x, &weight, &bias));
            assert_close(&format!("{what} forward"), &ours, &theirs, 1e-5);
            let gradients = |y: &Tensor| Tensor::run_backward(&[weighted(y)], &[&x, &weight, &bias], false, false);
            for (got, expected) in gradients(&ours).iter().zip(&gradients(&theirs)) {
                assert!(relative_error(got, expected) < 1e-5, "{what}: {got} {expected}");
            }
        }
    }

    #[test]
    fn the_gradient_has_a_gradient() {
        let [x, weight, bias] = inputs(8, 8);
        let second = |f: &dyn Fn(&Tensor, &Tensor, &Tensor) -> Tensor| {
            let first = Tensor::run_backward(&[weighted(&f(&x, &weight, &bias))], &[&x], true, true);
            Tensor::run_backward(&[weighted(&first[0].square())], &[&x, &weight], false, false)
        };
        for (got, expected) in second(&fused).iter().zip(&second(&plain)) {
            assert_close("second derivative", got, expected, 1e-4);
        }
    }

    #[test]
    fn the_gradient_of_a_convolution_is_autograds() {
        let x = (toys::images(2, [3, 5, 4]) - 0.5).set_requires_grad(true);
        let weight = (toys::images(2, [3, 3, 3]) - 0.5).set_requires_grad(true);
        let y = x.conv2d(&weight, None::<Tensor>, 1, 1, 1, 1);
        let gradient = toys::images(2, [2, 5, 4]);
        let expected = Tensor::run_backward(&[(&y * &gradient).sum(Kind::Float)], &[&x, &weight], false, false);
        let _no_grad = tch::no_grad_guard();
        let of = |wanted| convolution_backward(&gradient, &x, &weight, wanted).unwrap();
        let [of_x, of_weight] = of([true, true]);
        assert_close("images", &of_x.unwrap(), &expected[0], 1e-5);
        assert_close("weights", &of_weight.unwrap(), &expected[1], 1e-5);
        assert!(matches!(of([true, false]), [Some(_), None]) && matches!(of([false, true]), [None, Some(_)]));
        assert!(convolution_backward(&x, &x, &weight, [true, true]).is_err());
    }

    /// Sizes with a kernel and without.
    #[test]
    fn a_block_is_the_plain_operators() {
        for (channels, filters, height, width) in [
            (4, 4, 16, 16),
            (4, 24, 8, 8),
            (12, 8, 32, 32),
            (4, 4, 64, 64),
            (8, 4, 4, 8),
            (4, 4, 24, 8),
            (4, 4, 6, 16),
            (4, 4, 72, 32),
            (5, 4, 16, 16),
            (4, 6, 16, 16),
            (4, 4, 7, 8),
            (4, 4, 2, 8),
            (3, 4, 32, 32),
            (1, 2, 8, 8),
            (1, 2, 32, 32),
            (3, 2, 64, 64),
            (3, 2, 128, 128),
            (3, 2, 4, 32),
            (3, 3, 32, 32),
            (2, 2, 8, 8),
            (3, 2, 7, 9),
        ] {
            let what = format!("{channels}x{height}x{width}, {filters} filters");
            let x = toys::images(3, [channels, height, width]) - 0.5;
            let weight = toys::images(filters, [channels, 3, 3]) - 0.5;
            let bias = Tensor::arange(filters, (Kind::Float, x.device())) * 0.3;
            let (norm_weight, norm_bias) = (&bias + 0.5, 0.4 - &bias);
            let inputs = [x, weight, bias, norm_weight, norm_bias].map(|tensor| tensor.set_requires_grad(true));
            let [x, weight, bias, norm_weight, norm_bias] = &inputs;
            let ours = block(x, (weight, bias), (norm_weight, norm_bias), EPS).unwrap();
            let theirs = plain(&x.conv2d(weight, Some(bias), 1, 1, 1, 1), norm_weight, norm_bias);
            assert_close(&format!("{what} forward"), &ours, &theirs, 1e-5);
            // But for the bias, whose gradient is rounding noise in the plain operators.
            let gradients =
                |y: &Tensor| Tensor::run_backward(&[weighted(y)], &[x, weight, norm_weight, norm_bias], false, false);
            for (got, expected) in gradients(&ours).iter().zip(&gradients(&theirs)) {
                assert!(relative_error(got, expected) < 1e-5, "{what}: {got} {expected}");
            }
            // Only the images, as in an attack, and only the parameters, as in training.
            let fixed = |keep: &[usize]| {
                let held: Vec<Tensor> = (0..5)
                    .map(|i| if keep.contains(&i) { inputs[i].shallow_clone() } else { inputs[i].detach() })
                    .collect();
                let y = block(&held[0], (&held[1], &held[2]), (&held[3], &held[4]), EPS).unwrap();
                let wanted: Vec<&Tensor> = keep.iter().map(|&i| &held[i]).collect();
                Tensor::run_backward(&[weighted(&y)], &wanted, false, false)
            };
            let all = Tensor::run_backward(
                &[weighted(&block(x, (weight, bias), (norm_weight, norm_bias), EPS).unwrap())],
                &[x, weight, norm_weight, norm_bias],
                false,
                false,
            );
            assert_eq!(fixed(&[0])[0], all[0], "{what}");
            assert!(fixed(&[1, 3, 4]).iter().zip(&all[1..]).all(|(got, expected)| got == expected), "{what}");
        }
    }

    #[test]
    fn the_gradient_of_a_block_has_a_gradient() {
        for (channels, filters) in [(1, 2), (4, 4)] {
            let x = (toys::images(2, [channels, 8, 8]) - 0.5).set_requires_grad(true);
            let weight = (toys::images(filters, [channels, 3, 3]) - 0.5).set_requires_grad(true);
            let bias = Tensor::arange(filters, (Kind::Float, x.device())) * 0.1;
            let (norm_weight, norm_bias) = (1.1 - &bias, &bias + 0.05);
            let second = |y: Tensor| {
                let first = Tensor::run_backward(&[weighted(&y)], &[&x], true, true);
                Tensor::run_backward(&[weighted(&first[0].square())], &[&x, &weight], false, false)
            };
            // Matching gradients: those of the weight alone are asked for first.
            let matched = |y: Tensor| {
                let first = Tensor::run_backward(&[weighted(&y)], &[&weight], true, true);
                Tensor::run_backward(&[weighted(&first[0].square())], &[&x, &weight], false, false)
            };
            let ours = || block(&x, (&weight, &bias), (&norm_weight, &norm_bias), EPS).unwrap();
            let theirs = || plain(&x.conv2d(&weight, Some(&bias), 1, 1, 1, 1), &norm_weight, &norm_bias);
            for (got, expected) in second(ours()).iter().zip(&second(theirs())) {
                assert_close("second derivative", got, expected, 1e-4);
            }
            for (got, expected) in matched(ours()).iter().zip(&matched(theirs())) {
                assert!(relative_error(got, expected) < 1e-5, "{got} {expected}");
            }
        }
    }

    /// What an attack finds for an image does not depend on the images beside it, nor on whether a gradient will be asked for.
    /// libtorch's convolution, on which later blocks run without vectors, promises no such thing.
    #[test]
    fn an_image_alone_has_the_same_features_and_gradient_bit_for_bit() {
        for (channels, height, width) in [(3, 32, 32), (4, 16, 16), (8, 8, 8), (4, 24, 8), (4, 6, 16)] {
            if channels > 3 && vectors() == "none" {
                continue;
            }
            let x = toys::images(3, [channels, height, width]) - 0.5;
            let weight = toys::images(4, [channels, 3, 3]) - 0.5;
            let bias = Tensor::arange(4, (Kind::Float, x.device())) * 0.3;
            let (norm_weight, norm_bias) = (&bias + 0.5, 0.4 - &bias);
            let features = |x: &Tensor| block(x, (&weight, &bias), (&norm_weight, &norm_bias), EPS).unwrap();
            let with_gradient = |x: &Tensor| {
                let x = x.copy().set_requires_grad(true);
                let y = features(&x);
                let gradient = Tensor::run_backward(&[(&y * &y).sum(Kind::Float)], &[&x], false, false);
                (y.detach(), gradient[0].shallow_clone())
            };
            let (y, gradient) = with_gradient(&x);
            assert_eq!(features(&x), y);
            for i in 0..3 {
                let (alone, of_it) = with_gradient(&x.narrow(0, i, 1));
                assert_eq!(
                    (alone, of_it),
                    (y.narrow(0, i, 1), gradient.narrow(0, i, 1)),
                    "{channels}x{height}x{width}"
                );
            }
        }
    }

    /// `c2r train --precision bf16` on a CPU: the first block stays in f32, the others are rounded.
    #[test]
    fn in_bf16_a_later_block_is_rounded() {
        let x = toys::images(2, [4, 16, 16]) - 0.5;
        let weight = toys::images(4, [4, 3, 3]) - 0.5;
        let one = Tensor::ones([4], (Kind::Float, x.device()));
        let features = || block(&x, (&weight, &one), (&one, &one), EPS).unwrap().to_kind(Kind::Float);
        let exact = features();
        let _bf16 = Bf16::on(x.device());
        let error = relative_error(&features(), &exact);
        assert!((1e-4..5e-2).contains(&error), "{error}");
    }

    /// Another memory order, another dtype, one thread or two, no gradient wanted: the same function.
    #[test]
    fn other_inputs_and_threads() {
        let [x, weight, bias] = inputs(8, 16);
        let expected = fused(&x, &weight, &bias).detach();
        let turned = x.transpose(2, 3).contiguous().transpose(2, 3);
        assert!(!turned.is_contiguous());
        assert_eq!(fused(&turned, &weight, &bias), expected);
        let double = [&x, &weight, &bias].map(|tensor| tensor.to_kind(Kind::Double));
        let y = fused(&double[0], &double[1], &double[2]);
        assert_eq!(y.kind(), Kind::Double);
        assert_close("double", &y.to_kind(Kind::Float), &expected, 1e-5);
        let _no_grad = tch::no_grad_guard();
        assert_eq!(fused(&x, &weight, &bias), expected);
    }

    /// A traced network of two blocks becomes two operators with the same outputs and gradients.
    #[test]
    fn a_torchscript_model_is_rewritten() {
        let (conv, norm) = (toys::images(4, [3, 3, 3]) - 0.5, toys::images(1, [1, 2, 2]).view([4]) + 0.5);
        let second = toys::images(4, [4, 3, 3]) - 0.5;
        let mut forward = |images: &[Tensor]| {
            let mut x = images[0].shallow_clone();
            for weight in [&conv, &second] {
                x = x.conv2d(weight, Some(&norm), 1, 1, 1, 1).group_norm(
                    4,
                    Some(&norm),
                    Some(&(&norm - 1.0)),
                    EPS,
                    true,
                );
                x = x.relu().avg_pool2d([2i64, 2], [2i64, 2], [0i64, 0], false, true, None::<i64>);
            }
            vec![x.flatten(1, -1)]
        };
        let images = toys::images(3, [3, 32, 32]);
        let module =
            tch::CModule::create_by_tracing("Net", "forward", &[images.shallow_clone()], &mut forward).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.pt");
        module.save(&path).unwrap();
        let (archive, n_replaced) = tune_torchscript(&std::fs::read(&path).unwrap()).unwrap().expect("two blocks");
        assert_eq!(n_replaced, 2);
        let mut zip = zip::ZipArchive::new(std::io::Cursor::new(&archive)).unwrap();
        let name = zip.file_names().find(|name| name.contains("/code/") && name.ends_with(".py")).unwrap().to_owned();
        let code = std::io::read_to_string(zip.by_name(&name).unwrap()).unwrap();
        assert!(code.matches("ops.c2r.block(").count() == 2, "{code}");
        let tuned = tch::CModule::load_data(&mut archive.as_slice()).unwrap();
        let run = |module: &tch::CModule| {
            let x = images.copy().set_requires_grad(true);
            let y = module.forward_ts(&[&x]).unwrap();
            let gradient = Tensor::run_backward(&[weighted(&y)], &[&x], false, false).swap_remove(0);
            (y.detach(), gradient)
        };
        let (ours, theirs) = (run(&tuned), run(&module));
        assert_close("outputs", &ours.0, &theirs.0, 1e-5);
        assert!(relative_error(&ours.1, &theirs.1) < 1e-4);
        // What was rewritten has nothing left to rewrite.
        assert!(tune_torchscript(&archive).unwrap().is_none());
    }

    #[test]
    fn nan_stays_nan() {
        let [x, weight, bias] = inputs(4, 4).map(|tensor| tensor.detach());
        let _ = x.get(0).get(1).get(2).get(3).fill_(f64::NAN);
        let y = fused(&x, &weight, &bias).isnan();
        // Its own plane, and no other.
        assert_eq!(y.get(0).get(1).all().int64_value(&[]), 1);
        assert_eq!(y.sum(Kind::Int64).int64_value(&[]), 4);
    }

    /// libtorch has tensors that are negated when they are read, and zeros without memory.
    #[test]
    fn values_that_are_not_in_memory() {
        let [x, weight, bias] = inputs(8, 8);
        let kernel = toys::images(4, [4, 3, 3]) - 0.5;
        let of_block = |x: &Tensor| block(x, (&kernel, &bias), (&weight, &bias), EPS).unwrap();
        let negated = x.detach().neg().internal_neg_view();
        assert!(negated.is_neg());
        assert_close("negated", &fused(&negated, &weight, &bias), &fused(&x, &weight, &bias), 1e-5);
        assert_close("negated", &of_block(&negated), &of_block(&x), 1e-5);
        for y in [fused(&x, &weight, &bias), of_block(&x)] {
            let zeros = Tensor::internal_efficientzerotensor(y.size(), (Kind::Float, y.device()));
            let gradient = Tensor::run_backward(&[(y * zeros).sum(Kind::Float)], &[&x], false, false);
            assert_eq!(gradient[0].abs().max().double_value(&[]), 0.0);
        }
        // The gradient of the real part of a complex number. A single one has no gaps in memory, so nothing copies it.
        let (x, one) = (inputs(2, 2)[0].narrow(0, 0, 1).narrow(1, 0, 1), weight.narrow(0, 0, 1).detach());
        let gradient = |y: Tensor| {
            let turned = (Tensor::complex(&y.zeros_like(), &y).conj() * Tensor::complex(&one, &one)).real();
            Tensor::run_backward(&[turned.sum(Kind::Float)], &[&x], false, false).swap_remove(0)
        };
        let (ours, theirs) = (gradient(fused(&x, &one, &one)), gradient(plain(&x, &one, &one)));
        assert!(relative_error(&ours, &theirs) < 1e-5, "{ours} {theirs}");
    }

    /// libtorch's `group_norm` would write the gradient of x, which nobody wants, to null.
    #[test]
    fn channels_last_without_a_gradient_of_their_own() {
        let [x, weight, bias] = inputs(8, 8).map(|tensor| tensor.detach().to_kind(Kind::Double));
        let last = x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
        let weight = weight.set_requires_grad(true);
        let gradient = |x: &Tensor| {
            let loss = (fused(x, &weight, &bias)
                * (x.avg_pool2d([2i64, 2], [2i64, 2], [0i64, 0], false, true, None::<i64>) - 0.1))
                .sum(Kind::Double);
            Tensor::run_backward(&[loss], &[&weight], false, false).swap_remove(0)
        };
        assert!(relative_error(&gradient(&last), &gradient(&x)) < 1e-9);
    }

    /// `set_data` changes what the forward pass saved, and libtorch does not notice.
    #[test]
    fn data_of_another_size_after_the_forward_pass_are_an_error() {
        let values = Tensor::from_slice(&[0.3f32, 0.1, 0.4, -0.5]);
        let images = |n, size| toys::images(n, size) - 0.5;
        for (what, with_convolution, size, changed, data) in [
            ("more images", false, [4, 8, 8], 0, images(64, [4, 8, 8])),
            ("wider images", true, [3, 32, 32], 0, images(2, [3, 32, 48])),
            ("higher features", true, [4, 32, 32], 0, images(2, [4, 64, 32])),
            ("more filters", true, [4, 32, 32], 1, images(64, [4, 3, 3])),
        ] {
            // Without vectors libtorch convolves, and has an error of its own.
            if with_convolution && size[0] == 4 && vectors() == "none" {
                continue;
            }
            let mut inputs = [images(2, size), images(4, [size[0], 3, 3])].map(|tensor| tensor.set_requires_grad(true));
            let y = if with_convolution {
                block(&inputs[0], (&inputs[1], &values), (&values, &values), EPS).unwrap()
            } else {
                fused(&inputs[0], &values, &values)
            };
            inputs[changed].set_data(&data);
            let error = Tensor::f_run_backward(&[y.sum(Kind::Float)], &[&inputs[changed]], false, false).unwrap_err();
            assert!(error.to_string().contains("data of another size"), "{what}: {error}");
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let [x, weight, bias] = inputs(4, 4);
        let error = norm_relu_pool(&x, &weight.narrow(0, 0, 3), &bias, EPS).unwrap_err().to_string();
        assert!(error.contains("4 channels"), "{error}");
        let error = norm_relu_pool(&x.get(0), &weight, &bias, EPS).unwrap_err().to_string();
        assert!(error.contains("3 dimensions"), "{error}");
        // The forward pass already fails, with the message of libtorch's convolution.
        let (x, none) = (inputs(8, 8)[0].shallow_clone(), weight.narrow(0, 0, 0));
        let error = block(&x, (&x.narrow(0, 0, 0).narrow(2, 0, 3).narrow(3, 0, 3), &none), (&none, &none), EPS);
        assert!(error.unwrap_err().to_string().contains("at least 1"));
        assert!(tune_torchscript(b"no archive").is_err());
    }

    #[test]
    fn shapes_that_differ_are_an_error_without_a_stack() {
        let [one, two] = [1, 2].map(|n| Tensor::zeros([n], (Kind::Float, tch::Device::Cpu)));
        let error = sgd_step(&[&two], &[&Tensor::cat(&[&one, &two], 0)], &[&two], [0.1, 0.9, 0.0]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("size") && !text.contains("Exception raised from"), "{text}");
    }

    #[test]
    fn versions_are_those_of_the_manifest_and_of_the_headers() {
        let [(_, tch), (_, libtorch)] = versions();
        assert!(include_str!("../../../Cargo.toml").contains(&format!("tch = \"={tch}\"")), "{tch}");
        // tch 0.24 refuses any other.
        assert_eq!(libtorch, "2.11");
    }

    /// Each level of vectors has code of its own, and a processor uses one. So the tests of this file run again at the lower levels.
    #[test]
    fn kernels_for_other_processors_give_the_same() {
        const LIMIT: &str = "ATEN_CPU_CAPABILITY";
        if let Ok(limit) = std::env::var(LIMIT) {
            assert_eq!(vectors(), if limit == "avx2" { "AVX2" } else { "none" });
            return;
        }
        let program = std::env::current_exe().unwrap();
        for limit in ["avx2", "default"].into_iter().skip(usize::from(vectors() != "AVX-512")) {
            let output = std::process::Command::new(&program).arg("tests::").env(LIMIT, limit).output().unwrap();
            assert!(output.status.success(), "{limit}: {}", String::from_utf8_lossy(&output.stdout));
        }
    }
}
