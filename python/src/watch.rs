//! What the caller hears of while something runs, and Ctrl-C.

use std::collections::BTreeMap;

use pyo3::{exceptions::PyValueError, prelude::*};
use tch::Device;

/// The caller's callable for progress, if there is one.
pub(crate) struct Watch(pub(crate) Option<Py<PyAny>>);

impl Watch {
    /// Tells how far `name` is, and lets Python deal with signals.
    ///
    /// # Errors
    /// What the callable or a signal handler raises.
    pub(crate) fn tell(&self, name: &str, done: u64, total: u64, text: String) -> PyResult<()> {
        Python::with_gil(|py| {
            py.check_signals()?;
            self.0.as_ref().map_or(Ok(()), |progress| progress.call1(py, (name, done, total, text)).map(drop))
        })
    }
}

/// `cpu`, `cuda` or `cuda:N`, as `str(torch.device)` writes them.
pub(crate) fn device(text: &str) -> PyResult<Device> {
    let index = text.strip_prefix("cuda:").map(str::parse);
    match (text, index) {
        ("cpu", _) => Ok(Device::Cpu),
        ("cuda", _) => Ok(Device::Cuda(0)),
        (_, Some(Ok(index))) => Ok(Device::Cuda(index)),
        _ => Err(PyValueError::new_err(format!("device must be cpu, cuda or cuda:N, not `{text}`"))),
    }
}

/// Versions that every artefact records.
pub(crate) fn versions() -> BTreeMap<String, String> {
    let own = [("c2r", env!("CARGO_PKG_VERSION").to_owned())];
    own.into_iter().chain(c2r_kernels::versions()).map(|(name, version)| (name.to_owned(), version)).collect()
}
