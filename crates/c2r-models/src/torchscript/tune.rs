//! Rewrites operators in the code of a TorchScript archive that libtorch computes slowly on the CPU.
//!
//! An archive is a zip with the model's code as text. Two operators are replaced by calls of functions that
//! compute the same: 2x2 average pooling by a matrix product, and instance normalization without running
//! statistics by `group_norm` with one group per channel (docs/performance.md has the measurements).

use std::{
    io::{Cursor, Read, Write},
    path::Path,
};

use zip::{ZipArchive, ZipWriter, result::ZipError, write::FileOptions};

/// Where the functions go in the archive: the TorchScript module `__torch__.c2r_tuned`.
const FUNCTIONS_FILE: &str = "code/__torch__/c2r_tuned.py";

/// The functions, in the dialect that libtorch prints: no methods, no arithmetic operators.
///
/// `avg_pool2d` sums pairs of rows and columns of `[N, C, H, W]` as one product with a constant matrix, while
/// that is cheaper: its work per value grows with the width.
const FUNCTIONS: &str = r#"def avg_pool2d(x: Tensor) -> Tensor:
  narrow = False
  if torch.eq(torch.dim(x), 4):
    narrow = torch.le(torch.size(x, 3), 64)
  else:
    pass
  if narrow:
    n = torch.size(x, 0)
    channels = torch.size(x, 1)
    height = torch.floordiv(torch.size(x, 2), 2)
    width = torch.floordiv(torch.size(x, 3), 2)
    whole = torch.mul(torch.mul(height, width), 4)
    if torch.eq(whole, torch.mul(torch.size(x, 2), torch.size(x, 3))):
      even = x
    else:
      even = torch.slice(torch.slice(x, 2, 0, torch.mul(height, 2)), 3, 0, torch.mul(width, 2))
    pairs = torch.reshape(even, [torch.mul(torch.mul(n, channels), height), torch.mul(width, 4)])
    averages = torch.type_as(__torch__.c2r_tuned.averages(width, ), x)
    pooled = torch.reshape(torch.matmul(pairs, averages), [n, channels, height, width])
  else:
    pooled = torch.avg_pool2d(x, [2, 2], [2, 2], [0, 0])
  return pooled
def instance_norm(x: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool) -> Tensor:
  if torch.__isnot__(running_mean, None):
    plain = True
  else:
    plain = torch.__not__(use_input_stats)
  if plain:
    normed = torch.instance_norm(x, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled)
  else:
    normed = torch.group_norm(x, torch.size(x, 1), weight, bias, eps, cudnn_enabled)
  return normed
"#;

/// Widths for which the matrix is written with constants, so that libtorch makes it once and not in each pass.
const COMMON_WIDTHS: [u32; 5] = [16, 8, 4, 2, 32];

/// The code of [`FUNCTIONS_FILE`].
fn functions() -> String {
    let mut code = String::from("def averages(width: int) -> Tensor:\n");
    let matrix = |width: &str, indent: &str| {
        format!(
            "{indent}row = torch.mul(torch.repeat_interleave(torch.eye({width}), 2, 0), 0.25)\n\
             {indent}return torch.cat([row, row])\n"
        )
    };
    for width in COMMON_WIDTHS {
        let known = matrix(&width.to_string(), "    ");
        code.push_str(&format!("  if torch.eq(width, {width}):\n{known}  else:\n    pass\n"));
    }
    code + &matrix("width", "  ") + FUNCTIONS
}

/// No module's code is longer than this; a longer one is left alone, bytes.
const LONGEST_CODE: u64 = 16 << 20;

/// The archive with its slow operators replaced, and how many were; `None` if it has none.
///
/// # Errors
/// If it is not a zip.
pub(super) fn tuned(archive: &[u8]) -> Result<Option<(Vec<u8>, usize)>, ZipError> {
    let mut archive = ZipArchive::new(Cursor::new(archive))?;
    let mut rewritten = Vec::new();
    let mut n_replaced = 0;
    for index in 0..archive.len() {
        let entry = archive.by_index(index)?;
        let name = entry.name().to_owned();
        let is_code =
            name.contains("/code/") && Path::new(&name).extension().is_some_and(|extension| extension == "py");
        if !is_code || entry.size() > LONGEST_CODE {
            continue;
        }
        let mut code = String::new();
        if entry.take(LONGEST_CODE).read_to_string(&mut code).is_err() {
            continue;
        }
        let (code, n) = rewrite(&code);
        if n > 0 {
            n_replaced += n;
            rewritten.push((name, code));
        }
    }
    let Some((first, _)) = rewritten.first() else { return Ok(None) };
    let root = first.split_once('/').map_or("", |(root, _)| root);
    let functions_file = format!("{root}/{FUNCTIONS_FILE}");
    if archive.by_name(&functions_file).is_ok() {
        return Ok(None);
    }
    let mut copy = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = || FileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index)?;
        match rewritten.iter().find(|(name, _)| name == entry.name()) {
            Some((name, code)) => {
                copy.start_file(name.as_str(), stored())?;
                copy.write_all(code.as_bytes())?;
            }
            None => copy.raw_copy_file(entry)?,
        }
    }
    copy.start_file(functions_file, stored())?;
    copy.write_all(functions().as_bytes())?;
    Ok(Some((copy.finish()?.into_inner(), n_replaced)))
}

/// Replaces the calls in `code`; returns how many.
fn rewrite(code: &str) -> (String, usize) {
    let (code, n_pools) = replace_calls(code, "avg_pool2d", |arguments| match arguments {
        [x, shape @ ..] if is_two_by_two(shape) => Some(vec![x]),
        _ => None,
    });
    let (code, n_norms) =
        replace_calls(&code, "instance_norm", |arguments| (arguments.len() == 9).then(|| arguments.to_vec()));
    (code, n_pools + n_norms)
}

/// Kernel, stride and padding as libtorch prints them, which leaves out defaults at the end.
fn is_two_by_two(shape: &[&str]) -> bool {
    matches!(shape, ["[2, 2]"] | ["[2, 2]", "[2, 2]"] | ["[2, 2]", "[2, 2]", "[0, 0]"])
}

/// Turns `torch.NAME(arguments)` into `__torch__.c2r_tuned.NAME(chosen, )` where `choose` gives arguments.
fn replace_calls<'a>(
    code: &'a str,
    name: &str,
    choose: impl Fn(&[&'a str]) -> Option<Vec<&'a str>>,
) -> (String, usize) {
    let call = format!("torch.{name}(");
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    let mut n = 0;
    while let Some(at) = rest.find(&call) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let inside = &from[call.len()..];
        // Not the end of a longer name such as `__torch__.torch.NAME`.
        let whole = !before.ends_with(|c: char| c == '.' || c == '_' || c.is_alphanumeric());
        let found = whole.then(|| arguments(inside)).flatten();
        match found.and_then(|(arguments, length)| choose(&arguments).map(|chosen| (chosen, length))) {
            Some((chosen, length)) => {
                out.push_str(&format!("__torch__.c2r_tuned.{name}({}, )", chosen.join(", ")));
                rest = &inside[length..];
                n += 1;
            }
            None => {
                out.push_str(&call);
                rest = inside;
            }
        }
    }
    out.push_str(rest);
    (out, n)
}

/// Splits what follows an opening parenthesis at its top-level commas; returns the arguments and the length up
/// to and with the closing parenthesis. `None` if there is a text literal or no end.
fn arguments(inside: &str) -> Option<(Vec<&str>, usize)> {
    let mut depth = 0;
    let mut from = 0;
    let mut arguments = Vec::new();
    for (at, c) in inside.char_indices() {
        match c {
            '"' | '\'' => return None,
            '(' | '[' => depth += 1,
            ')' if depth == 0 => {
                arguments.push(inside[from..at].trim());
                return Some((arguments, at + 1));
            }
            ')' | ']' => depth -= 1,
            ',' if depth == 0 => {
                arguments.push(inside[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(code: &str, expected: &str) {
        let n = usize::from(code != expected);
        assert_eq!(rewrite(code), (expected.to_owned(), n));
    }

    #[test]
    fn pools_of_two_by_two_are_replaced() {
        check(
            "    x = torch.avg_pool2d(torch.relu(y), [2, 2], [2, 2], [0, 0])\n    return x\n",
            "    x = __torch__.c2r_tuned.avg_pool2d(torch.relu(y), )\n    return x\n",
        );
        check("torch.avg_pool2d(x3, [2, 2])", "__torch__.c2r_tuned.avg_pool2d(x3, )");
        for left_alone in [
            "torch.avg_pool2d(x, [3, 3], [2, 2], [1, 1])",
            "torch.avg_pool2d(x, [2, 2], [1, 1])",
            "torch.avg_pool2d(x, [2, 2], [2, 2], [0, 0], True)",
            "__torch__.torch.avg_pool2d(x, [2, 2])",
            "torch.avg_pool2d(x, [2, 2]",
        ] {
            check(left_alone, left_alone);
        }
    }

    #[test]
    fn instance_norms_are_replaced() {
        check(
            "y = torch.instance_norm(x, w, b, None, None, True, 0.1, 1.0000000000000001e-05, True)",
            "y = __torch__.c2r_tuned.instance_norm(x, w, b, None, None, True, 0.1, 1.0000000000000001e-05, True, )",
        );
    }
}
