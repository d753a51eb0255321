use tch::{Kind, Tensor};

/// The largest absolute difference of two tensors of one shape.
///
/// # Panics
/// If the shapes differ.
pub fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size(), "shapes differ");
    if a.numel() == 0 {
        return 0.0;
    }
    let difference = (a.detach().to_kind(Kind::Double) - b.detach().to_kind(Kind::Double)).abs();
    // `max` ignores nothing: a NaN anywhere gives NaN, which no tolerance accepts.
    difference.max().double_value(&[])
}

/// `|a - b| / |b|` in Euclidean length over all values.
///
/// # Panics
/// If the shapes differ.
pub fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size(), "shapes differ");
    let (a, b) = (a.detach().to_kind(Kind::Double), b.detach().to_kind(Kind::Double));
    ((&a - &b).norm() / b.norm().clamp_min(f64::MIN_POSITIVE)).double_value(&[])
}

/// Asserts that every value of `got` is within `tolerance` of `expected`.
///
/// # Panics
/// With `what`, the position of the worst value, both values there and how many are off.
pub fn assert_close(what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), expected.size(), "{what}: got shape {:?}, expected {:?}", got.size(), expected.size());
    if got.numel() == 0 {
        return;
    }
    let (got, expected) = (got.detach().to_kind(Kind::Double), expected.detach().to_kind(Kind::Double));
    let difference = (&got - &expected).abs();
    let off = difference.le(tolerance).logical_not();
    let n_off = off.sum(Kind::Int64).int64_value(&[]);
    if n_off == 0 {
        return;
    }
    let worst = difference.nan_to_num(f64::INFINITY, None, None).flatten(0, -1).argmax(0, false).int64_value(&[]);
    let mut position = Vec::new();
    let mut rest = worst;
    for &length in got.size().iter().rev() {
        position.insert(0, rest % length);
        rest /= length;
    }
    panic!(
        "{what}: {n_off} of {} values differ by more than {tolerance:e}; worst at {position:?}: got {}, expected {}",
        got.numel(),
        got.flatten(0, -1).double_value(&[worst]),
        expected.flatten(0, -1).double_value(&[worst]),
    );
}

/// Asserts that two tensors have the same shape, dtype and bits.
///
/// # Panics
/// With `what` if they do not.
pub fn assert_same_bytes(what: &str, a: &Tensor, b: &Tensor) {
    assert_eq!(a.kind(), b.kind(), "{what}: dtypes differ");
    assert_eq!(a.size(), b.size(), "{what}: shapes differ");
    let bytes = |tensor: &Tensor| {
        let tensor = tensor.detach().to_device(tch::Device::Cpu).contiguous();
        let mut bytes = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        bytes
    };
    if bytes(a) != bytes(b) {
        panic!("{what}: bytes differ, by up to {:e}", max_difference(a, b));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "logits: 1 of 4 values differ by more than 1e-3; worst at [1, 0]: got 3.5, expected 3")]
    fn failures_say_where() {
        let a = Tensor::from_slice(&[1.0f32, 2.0, 3.5, 4.0]).view([2, 2]);
        let b = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]).view([2, 2]);
        assert_close("logits", &a, &b, 1e-3);
    }

    #[test]
    #[should_panic(expected = "worst at [0]: got NaN")]
    fn nan_is_never_close() {
        assert_close("x", &Tensor::from_slice(&[f32::NAN, 0.0]), &Tensor::from_slice(&[0.0f32, 0.0]), 1e9);
    }

    #[test]
    fn equal_is_close() {
        let a = Tensor::from_slice(&[1.0f32, 2.0]);
        assert_close("a", &a, &a, 0.0);
        assert_same_bytes("a", &a, &a.copy());
        assert_eq!(max_difference(&a, &(&a + 0.5)), 0.5);
        assert!((relative_error(&(&a * 1.5), &a) - 0.5).abs() < 1e-9);
    }
}
