//! In which floats libtorch computes convolutions and matrix products of f32 tensors: read, and set.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use tch::Device;

unsafe extern "C" {
    safe fn c2r_allow_tf32(convolutions: bool);
    safe fn c2r_tf32_convolutions() -> bool;
    safe fn c2r_tf32_products() -> bool;
    safe fn c2r_autocast(cuda: bool) -> Autocast;
    safe fn c2r_set_autocast(cuda: bool, autocast: Autocast);
    safe fn c2r_bf16() -> i32;
}

/// What this thread's autocast does on a kind of device.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Autocast {
    /// libtorch's number of it.
    dtype: i32,
    on: bool,
    /// Whether it keeps the casts of parameters.
    cache: bool,
}

/// A format that factors are rounded to before they are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatFormat {
    /// f32 itself: 23 bits after the point.
    Fp32,
    /// TF32 of NVIDIA's GPUs since Ampere: the range of f32, 10 bits after the point. Sums are f32.
    Tf32,
    /// bfloat16: the range of f32, 7 bits after the point; results are rounded to it, too.
    Bf16,
}

impl FloatFormat {
    /// The format of convolutions on `device` where it is not the device's default: then it belongs to what a run is asked for,
    /// and a run in another format is another run.
    pub fn unusual(device: Device) -> Option<Self> {
        let [convolutions, _] = precision(device);
        convolutions.is_unusual(device.is_cuda()).then_some(convolutions)
    }

    fn is_unusual(self, on_gpu: bool) -> bool {
        self != if on_gpu { Self::Tf32 } else { Self::Fp32 }
    }
}

impl fmt::Display for FloatFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "fp32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        })
    }
}

/// What this thread computes f32 convolutions and f32 matrix products in on `device`, as libtorch's switches say. A GPU
/// older than Ampere has no TF32 and computes in f32 all the same, and so does the CUDA kernel of [`crate::block`] for images.
pub fn precision(device: Device) -> [FloatFormat; 2] {
    let cuda = device.is_cuda();
    let autocast = c2r_autocast(cuda);
    if autocast.on && autocast.dtype == c2r_bf16() {
        return [FloatFormat::Bf16; 2];
    }
    [c2r_tf32_convolutions(), c2r_tf32_products()]
        .map(|on| if cuda && on { FloatFormat::Tf32 } else { FloatFormat::Fp32 })
}

/// [`precision`] for a record: the name of each format, of `convolutions` and of `matmuls`.
pub fn precision_names(device: Device) -> BTreeMap<String, String> {
    let names = ["convolutions", "matmuls"].map(str::to_owned);
    names.into_iter().zip(precision(device).map(|format| format.to_string())).collect()
}

/// Whether convolutions may use TF32 on GPUs, in the whole process: libtorch's default. Matrix products never do, which is
/// libtorch's default, too, whatever `TORCH_ALLOW_TF32_CUBLAS_OVERRIDE` says.
pub fn allow_tf32(convolutions: bool) {
    c2r_allow_tf32(convolutions);
}

/// While it lives, this thread computes in bf16 what libtorch's autocast has in its list: convolutions and matrix
/// products. Parameters and their gradients stay f32. Then autocast does what it did before; of two guards, drop the second
/// first.
#[derive(Debug)]
#[must_use = "bf16 ends when this is dropped"]
pub struct Bf16 {
    cuda: bool,
    before: Autocast,
    /// It belongs to its thread.
    _thread: PhantomData<*const ()>,
}

impl Bf16 {
    /// Begins it on `device`.
    pub fn on(device: Device) -> Self {
        let cuda = device.is_cuda();
        let before = c2r_autocast(cuda);
        // A cast that is kept would outlive the next update of its parameter.
        c2r_set_autocast(cuda, Autocast { dtype: c2r_bf16(), on: true, cache: false });
        Self { cuda, before, _thread: PhantomData }
    }
}

impl Drop for Bf16 {
    fn drop(&mut self) {
        c2r_set_autocast(self.cuda, self.before);
    }
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    #[test]
    fn the_default_format_is_not_part_of_a_run() {
        let unusual =
            |on_gpu| [FloatFormat::Fp32, FloatFormat::Tf32, FloatFormat::Bf16].map(|format| format.is_unusual(on_gpu));
        assert_eq!(unusual(true), [true, false, true]);
        assert_eq!(unusual(false), [false, true, true]);
        assert_eq!(FloatFormat::unusual(Device::Cpu), None);
    }

    /// The switches are of the process, so one test has them all.
    #[test]
    fn the_switches_say_what_was_set() {
        use FloatFormat::{Fp32, Tf32};
        let gpu = Device::Cuda(0);
        assert_eq!(precision(gpu), [Tf32, Fp32], "libtorch's default");
        for (tf32, expected) in [(false, Fp32), (true, Tf32)] {
            allow_tf32(tf32);
            assert_eq!(precision(gpu), [expected, Fp32]);
            assert_eq!(precision(Device::Cpu), [Fp32; 2]);
        }
    }

    /// 1 + 2^-9 is 1 in bf16, which has 7 bits after the point.
    #[test]
    fn convolutions_and_products_are_bf16_while_the_guard_lives() {
        let fine = Tensor::full([1, 1, 1, 1], 1.0 + 1.0 / 512.0, (Kind::Float, Device::Cpu));
        let one = Tensor::ones([1, 1, 1, 1], (Kind::Float, Device::Cpu));
        let results = || {
            let convolution = fine.conv2d(&one, None::<Tensor>, 1, 0, 1, 1).double_value(&[0, 0, 0, 0]);
            let product = fine.view([1, 1]).matmul(&one.view([1, 1])).double_value(&[0, 0]);
            (convolution, product, precision(Device::Cpu))
        };
        let exact = 1.0 + 1.0 / 512.0;
        let guard = Bf16::on(Device::Cpu);
        assert_eq!(results(), (1.0, 1.0, [FloatFormat::Bf16; 2]));
        drop(guard);
        assert_eq!(results(), (exact, exact, [FloatFormat::Fp32; 2]));
    }

    /// Also that of a caller, here f16 with its cache.
    #[test]
    fn a_guard_leaves_what_it_found() {
        let f16 = Autocast { dtype: 5, on: true, cache: true };
        let before = c2r_autocast(false);
        c2r_set_autocast(false, f16);
        let outer = Bf16::on(Device::Cpu);
        drop(Bf16::on(Device::Cpu));
        assert_eq!(precision(Device::Cpu), [FloatFormat::Bf16; 2]);
        assert!(!c2r_autocast(false).cache);
        drop(outer);
        assert_eq!(c2r_autocast(false), f16);
        c2r_set_autocast(false, before);
    }

    /// A cast that was kept would be the parameter of the step before.
    #[test]
    fn an_updated_parameter_counts_at_once() {
        let weight = Tensor::full([1, 1], 2.0, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let x = Tensor::ones([1, 1], (Kind::Float, Device::Cpu));
        let _bf16 = Bf16::on(Device::Cpu);
        assert_eq!(x.matmul(&weight).double_value(&[0, 0]), 2.0);
        let no_grad = tch::no_grad_guard();
        let _ = weight.shallow_clone().fill_(3.0);
        drop(no_grad);
        assert_eq!(x.matmul(&weight).double_value(&[0, 0]), 3.0);
    }
}
