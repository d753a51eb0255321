//! What is attacked: a Python callable, or a TorchScript file that runs without Python.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use c2r_base::{Classifier, ClassifierError, grad::GradientError};
use c2r_models::TorchScript;
use pyo3::{
    exceptions::{PyException, PyTypeError},
    prelude::*,
    types::{PyDict, PyTuple},
};
use pyo3_tch::PyTensor;
use tch::{Device, Tensor};

use crate::error::{Raised, value_error};

/// Set when the evaluation has to end; every pass looks at it.
pub(crate) type Stop = Arc<AtomicBool>;

fn stopped(stop: &Stop) -> Result<(), ClassifierError> {
    if stop.load(Ordering::Relaxed) { Err(ClassifierError::new("stopped")) } else { Ok(()) }
}

/// A Python callable from pixels to logits. The GIL is held while it runs and at no other time.
pub(crate) struct Callable {
    pub(crate) model: Py<PyAny>,
    /// `torch.autograd.grad`.
    pub(crate) grad: Py<PyAny>,
    pub(crate) device: Device,
    pub(crate) raised: Raised,
    pub(crate) stop: Stop,
}

impl Callable {
    fn call(&self, py: Python<'_>, images: &Tensor) -> PyResult<Tensor> {
        py.check_signals()?;
        let returned = self.model.bind(py).call1((PyTensor(images.shallow_clone()),))?;
        returned.extract::<PyTensor>().map(|logits| logits.0).map_err(|_| {
            let kind = returned.get_type();
            let advice = if returned.is_instance_of::<PyTuple>() {
                "; return the logits alone: lambda x: model(x)[0]"
            } else if returned.hasattr("logits").unwrap_or(false) {
                "; return the logits alone: lambda x: model(x).logits"
            } else if returned.is_instance_of::<PyDict>() {
                "; return the logits alone, for example: lambda x: model(x)[\"logits\"]"
            } else {
                ""
            };
            PyTypeError::new_err(format!("the model must return a tensor of logits [N, K], got {kind}{advice}"))
        })
    }

    /// Keeps an exception. `KeyboardInterrupt` and the like end the evaluation wherever they come, also in a check that an
    /// error of the model does not end.
    fn failed(&self, py: Python<'_>, error: PyErr) -> ClassifierError {
        if !error.is_instance_of::<PyException>(py) {
            self.stop.store(true, Ordering::Relaxed);
        }
        self.raised.keep(error)
    }
}

impl Classifier for Callable {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        stopped(&self.stop)?;
        Python::with_gil(|py| self.call(py, images).map_err(|error| self.failed(py, error)))
    }

    fn device(&self) -> Device {
        self.device
    }

    fn replica(&self) -> Option<Box<dyn Classifier + Send>> {
        Some(Box::new(Python::with_gil(|py| Self {
            model: self.model.clone_ref(py),
            grad: self.grad.clone_ref(py),
            device: self.device,
            raised: self.raised.clone(),
            stop: self.stop.clone(),
        })))
    }

    /// By Python's own `torch.autograd.grad`, which lets exceptions of the model's backward pass through as they are.
    fn gradient(&self, scalar: &Tensor, images: &Tensor, keep_graph: bool) -> Result<Tensor, GradientError> {
        if !scalar.requires_grad() {
            return Err(GradientError::Untracked);
        }
        let found = Python::with_gil(|py| {
            // outputs, inputs, grad_outputs, retain_graph, create_graph, only_inputs, allow_unused
            let (sum, x) = (PyTensor(scalar.shallow_clone()), PyTensor(images.shallow_clone()));
            let found = self.grad.bind(py).call1((sum, x, py.None(), keep_graph, false, true, true))?;
            found.get_item(0)?.extract::<Option<PyTensor>>()
        });
        match found {
            Ok(Some(gradient)) => Ok(gradient.0),
            Ok(None) => Err(GradientError::Unused),
            Err(error) => Err(GradientError::Failed(Python::with_gil(|py| self.failed(py, error)).to_string())),
        }
    }
}

/// A TorchScript model that can be stopped.
pub(crate) struct Script {
    script: Box<dyn Classifier + Send>,
    stop: Stop,
}

/// A [`Script`], and how many of its operators were replaced.
pub(crate) struct Loaded {
    pub(crate) script: Script,
    pub(crate) n_tuned: usize,
}

impl Script {
    /// Loads a file as `c2r attack --model` does, and checks that it takes images of `shape` (`[C, H, W]`).
    pub(crate) fn load(
        path: &Path,
        shape: [i64; 3],
        as_is: bool,
        needs_gradient: bool,
        device: Device,
        stop: Stop,
    ) -> PyResult<Loaded> {
        let script = TorchScript::load(path, device).map_err(value_error)?;
        let probed = script.probe(shape).map_err(value_error)?;
        if let (true, Some(reason)) = (needs_gradient, probed.no_gradient) {
            return Err(value_error(anyhow::anyhow!(
                "the model cannot be attacked by its gradient: {reason}; use attacks that need none (square, noise), or \
                 export it without no_grad, detach, argmax and round"
            )));
        }
        let tuned = if as_is { None } else { script.tuned(shape).map_err(value_error)? };
        let (script, n_tuned) = tuned.unwrap_or((script, 0));
        Ok(Loaded { script: Self { script: Box::new(script), stop }, n_tuned })
    }
}

impl Classifier for Script {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        stopped(&self.stop)?;
        self.script.logits(images)
    }

    fn device(&self) -> Device {
        self.script.device()
    }

    fn replica(&self) -> Option<Box<dyn Classifier + Send>> {
        Some(Box::new(Self { script: self.script.replica()?, stop: self.stop.clone() }))
    }
}
