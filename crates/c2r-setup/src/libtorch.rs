//! Which libtorch c2r is built on, and what a folder that claims to hold one really holds.
//!
//! This is the one place of the libtorch side of the pin; the other side is `tch` in the root
//! `Cargo.toml`, and a test below compares the two.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::Context;

/// The libtorch that the pinned `tch` binds; `torch-sys` refuses any other.
pub const LIBTORCH_VERSION: &str = "2.11.0";

/// The `tch` that goes with [`LIBTORCH_VERSION`].
pub const TCH_VERSION: &str = "0.24.0";

/// What pip installs for a machine with a GPU: everything, with dependencies.
pub const CUDA_WHEELS: &[&str] = &["torch==2.11.0"];

/// What pip downloads for a machine without a GPU: torch alone, and the two small CUDA libraries
/// that its CPU part is linked against.
pub const CPU_WHEELS: &[&str] = &["torch==2.11.0", "nvidia-cuda-runtime==13.0.*", "nvidia-cuda-cupti==13.0.*"];

/// The libraries a program on the CPU loads; 90 % of the torch wheel are not among them.
pub const CPU_LIBRARIES: &[&str] =
    &["libc10.so", "libtorch_cpu.so", "libtorch.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"];

/// The Python whose wheel is downloaded. Only the C++ part is used, so any Python can fetch it.
pub const WHEEL_PYTHON: &str = "3.11";

/// Whether libtorch can use a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// CPU part only.
    Cpu,
    /// With `libtorch_cuda`.
    Cuda,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flavour::Cpu => "CPU only",
            Flavour::Cuda => "with CUDA",
        })
    }
}

/// A folder with libtorch in it: `include/`, `lib/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Libtorch {
    /// The folder.
    pub folder: PathBuf,
    /// Its version without a local part, e.g. `2.11.0`.
    pub version: String,
    /// Whether it can use a GPU.
    pub flavour: Flavour,
}

impl Libtorch {
    /// Looks into `folder`.
    ///
    /// # Errors
    /// What is missing there.
    pub fn inspect(folder: &Path) -> anyhow::Result<Self> {
        let library = |name: &str| {
            folder.join("lib").join(format!("{}{name}{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX))
        };
        for needed in
            [folder.join("include/torch/csrc/api/include/torch/torch.h"), library("torch_cpu"), library("c10")]
        {
            anyhow::ensure!(
                needed.is_file(),
                "{} is not a libtorch folder: it has no {}",
                folder.display(),
                needed.strip_prefix(folder).unwrap_or(&needed).display()
            );
        }
        let version = read_version(folder)?;
        let flavour = if library("torch_cuda").is_file() { Flavour::Cuda } else { Flavour::Cpu };
        Ok(Self { folder: folder.to_owned(), version, flavour })
    }

    /// Whether it is the version we build on.
    pub fn is_right_version(&self) -> bool {
        self.version == LIBTORCH_VERSION
    }
}

impl fmt::Display for Libtorch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "libtorch {} ({}) in {}", self.version, self.flavour, self.folder.display())
    }
}

/// The version of the libtorch in `folder`: from `build-version` (the zip archives of pytorch.org),
/// `version.py` (the Python package) or the C++ header (both).
fn read_version(folder: &Path) -> anyhow::Result<String> {
    if let Ok(text) = fs::read_to_string(folder.join("build-version")) {
        return Ok(without_local_part(text.trim()).to_owned());
    }
    if let Some(version) = fs::read_to_string(folder.join("version.py")).ok().as_deref().and_then(version_in_python) {
        return Ok(version);
    }
    let headers = ["include/torch/headeronly/version.h", "include/torch/csrc/api/include/torch/version.h"];
    headers
        .iter()
        .filter_map(|header| fs::read_to_string(folder.join(header)).ok())
        .find_map(|text| version_in_header(&text))
        .with_context(|| format!("{} does not say which version of libtorch it is", folder.display()))
}

/// `2.11.0+cu130` is `2.11.0` for everything but its CUDA.
fn without_local_part(version: &str) -> &str {
    version.split_once('+').map_or(version, |(version, _)| version)
}

/// `__version__ = '2.11.0+cu130'`.
fn version_in_python(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix("__version__"))?;
    let version = value.split(['\'', '"']).nth(1)?;
    Some(without_local_part(version).to_owned())
}

/// `#define TORCH_VERSION_MAJOR 2` and so on.
fn version_in_header(text: &str) -> Option<String> {
    let number = |name: &str| {
        text.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("#define") && words.next() == Some(name)).then(|| words.next())?
        })
    };
    let [major, minor, patch] = ["TORCH_VERSION_MAJOR", "TORCH_VERSION_MINOR", "TORCH_VERSION_PATCH"].map(number);
    Some(format!("{}.{}.{}", major?, minor?, patch?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A folder that looks like libtorch.
    pub(crate) fn fake(folder: &Path, header_version: [u32; 3], cuda: bool) {
        let [major, minor, patch] = header_version;
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("include/torch/csrc/api/include/torch/torch.h", "");
        write(
            "include/torch/headeronly/version.h",
            &format!(
                "#pragma once\n#define TORCH_VERSION_MAJOR {major}\n#define TORCH_VERSION_MINOR {minor}\n\
                 #define TORCH_VERSION_PATCH {patch}\n#define TORCH_VERSION \\\n"
            ),
        );
        let library = |name: &str| format!("lib/{}{name}{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
        write(&library("torch_cpu"), "");
        write(&library("c10"), "");
        if cuda {
            write(&library("torch_cuda"), "");
        }
    }

    #[test]
    fn versions_are_read_from_each_layout() {
        let folder = tempfile::tempdir().unwrap();
        fake(folder.path(), [2, 11, 0], false);
        let version = || Libtorch::inspect(folder.path()).unwrap().version;
        assert_eq!(version(), "2.11.0");
        fs::write(folder.path().join("version.py"), "from typing import Optional\n__version__ = '2.9.1+cu128'\n")
            .unwrap();
        assert_eq!(version(), "2.9.1");
        fs::write(folder.path().join("build-version"), "2.4.0+cpu\n").unwrap();
        assert_eq!(version(), "2.4.0");
    }

    #[test]
    fn flavour_and_missing_parts() {
        let folder = tempfile::tempdir().unwrap();
        let message = Libtorch::inspect(folder.path()).unwrap_err().to_string();
        assert!(message.contains("it has no include/torch/csrc/api/include/torch/torch.h"), "{message}");
        fake(folder.path(), [2, 11, 0], true);
        let found = Libtorch::inspect(folder.path()).unwrap();
        assert_eq!(found.flavour, Flavour::Cuda);
        assert!(found.is_right_version());
        fs::remove_dir_all(folder.path().join("lib")).unwrap();
        assert!(Libtorch::inspect(folder.path()).unwrap_err().to_string().contains("torch_cpu"));
    }

    #[test]
    fn a_header_without_numbers_has_no_version() {
        assert_eq!(version_in_header("#define TORCH_VERSION_MAJOR 2\n"), None);
        assert_eq!(version_in_python("version = 3"), None);
    }

    #[test]
    fn the_two_sides_of_the_pin_agree() {
        let root = &Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let manifest: toml::Table = fs::read_to_string(root.join("Cargo.toml")).unwrap().parse().unwrap();
        assert_eq!(manifest["workspace"]["dependencies"]["tch"].as_str(), Some(&*format!("={TCH_VERSION}")));
        for wheels in [CPU_WHEELS, CUDA_WHEELS] {
            assert_eq!(wheels[0], format!("torch=={LIBTORCH_VERSION}"));
        }
        // The Python package, which is a workspace of its own, has the same pair.
        let read = |name: &str| fs::read_to_string(root.join("python").join(name)).unwrap();
        let package: toml::Table = read("Cargo.toml").parse().unwrap();
        for name in ["tch", "pyo3-tch"] {
            assert_eq!(package["dependencies"][name].as_str(), Some(&*format!("={TCH_VERSION}")));
        }
        let minor = LIBTORCH_VERSION.rsplit_once('.').unwrap().0;
        assert!(read("build_backend.py").contains(&format!("\nTORCH = \"{minor}\"\n")));
        assert!(read("package/c2r/__init__.py").contains(&format!("\n_TORCH = \"{minor}\"\n")));
        assert!(read("pyproject.toml").contains(&format!("\"torch=={minor}.*\"")));
    }
}
