//! The compiled half of the Python package `c2r`: `package/c2r` holds the other half and its documentation.

mod attack;
mod distill;
mod error;
mod memory;
mod model;
mod sets;
mod train;
mod watch;

use pyo3::prelude::*;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(attack::attack, module)?)?;
    module.add_function(wrap_pyfunction!(sets::load_set, module)?)?;
    module.add_function(wrap_pyfunction!(sets::decode, module)?)?;
    module.add_function(wrap_pyfunction!(sets::save_set, module)?)?;
    module.add_function(wrap_pyfunction!(distill::distill, module)?)?;
    module.add_function(wrap_pyfunction!(train::train, module)?)?;
    Ok(())
}
