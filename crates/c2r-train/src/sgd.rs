use c2r_base::grad;
use c2r_models::Model;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::state::{State, StateError};

/// Settings of [`Sgd`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SgdConfig {
    /// Learning rate.
    pub lr: f64,
    /// How much of the last step's direction is kept, 0 for none.
    pub momentum: f64,
    /// Times the parameter is added to its gradient.
    pub weight_decay: f64,
}

/// Stochastic gradient descent as `torch.optim.SGD` does it (dampening 0, no Nesterov), with explicit state.
///
/// For each parameter p with gradient g and buffer v, which begins at 0:
/// `v <- momentum v + (g + weight_decay p)`, `p <- p - lr v`.
///
/// ```
/// use c2r_train::{Sgd, SgdConfig};
/// use tch::Tensor;
///
/// let parameters = vec![("w".to_owned(), Tensor::from_slice(&[1.0f32]))];
/// let mut sgd = Sgd::new(SgdConfig { lr: 0.1, momentum: 0.9, weight_decay: 0.0 }, &parameters);
/// sgd.step(&parameters, &[Tensor::from_slice(&[2.0f32])]);
/// assert!((parameters[0].1.double_value(&[0]) - 0.8).abs() < 1e-6);
/// ```
#[derive(Debug)]
pub struct Sgd {
    config: SgdConfig,
    /// Name and buffer, in the order of the parameters.
    buffers: Vec<(String, Tensor)>,
}

impl Sgd {
    /// An optimizer with zero buffers for `parameters` (as [`c2r_models::Model::parameters`] gives them).
    pub fn new(config: SgdConfig, parameters: &[(String, Tensor)]) -> Self {
        let zeros = |tensor: &Tensor| tensor.detach().zeros_like();
        Self { config, buffers: parameters.iter().map(|(name, tensor)| (name.clone(), zeros(tensor))).collect() }
    }

    /// An optimizer with copies of the buffers, for a copy of the network.
    pub fn copy(&self) -> Self {
        let buffers = self.buffers.iter().map(|(name, buffer)| (name.clone(), buffer.copy())).collect();
        Self { config: self.config, buffers }
    }

    /// Changes the learning rate; buffers stay.
    pub const fn set_lr(&mut self, lr: f64) {
        self.config.lr = lr;
    }

    /// One step: writes into `parameters` in place.
    ///
    /// * `parameters`: the same as for [`Sgd::new`], in the same order.
    /// * `gradients`: one for each parameter, of its shape.
    ///
    /// # Panics
    /// If the parameters are not those the optimizer was made for, or a gradient has another shape than its parameter.
    pub fn step(&mut self, parameters: &[(String, Tensor)], gradients: &[Tensor]) {
        let _no_grad = tch::no_grad_guard();
        let SgdConfig { lr, momentum, weight_decay } = self.config;
        for ((name, _), (own, _)) in self.buffers.iter().zip(parameters) {
            assert_eq!(name, own, "parameters changed their order");
        }
        let parameters: Vec<&Tensor> = parameters.iter().map(|(_, tensor)| tensor).collect();
        let buffers: Vec<&Tensor> = self.buffers.iter().map(|(_, tensor)| tensor).collect();
        let gradients: Vec<&Tensor> = gradients.iter().collect();
        c2r_kernels::sgd_step(&parameters, &gradients, &buffers, [lr, momentum, weight_decay])
            .unwrap_or_else(|error| panic!("a step of the optimizer failed: {error}"));
    }

    /// Visits the buffers, by the names of their parameters.
    ///
    /// # Errors
    /// [`StateError`] naming a buffer that is missing, of another shape or dtype, or of no parameter.
    pub fn state(&mut self, state: &mut State<'_>) -> Result<(), StateError> {
        if state.reads() {
            let stray = state.below("").into_keys().find(|name| self.buffers.iter().all(|(own, _)| own != name));
            if let Some(name) = stray {
                return Err(StateError(format!("`{}` belongs to no parameter", state.name(&name))));
            }
        }
        self.buffers.iter_mut().try_for_each(|(name, buffer)| state.tensor(name, buffer))
    }
}

/// The value of `loss`, a scalar, and its gradients by the parameters of `model`, in their order. The parameters track
/// gradients while `loss` runs, and not afterwards.
pub fn parameter_gradients(model: &Model, loss: impl FnOnce() -> Tensor) -> (Tensor, Vec<Tensor>) {
    model.set_trainable(true);
    let value = tch::with_grad(loss);
    let parameters = model.parameters();
    let handles: Vec<&Tensor> = parameters.iter().map(|(_, tensor)| tensor).collect();
    let gradients = grad::gradients(&value, &handles);
    model.set_trainable(false);
    (value, gradients)
}

#[cfg(test)]
mod tests {
    use c2r_testkit::{assert_close, assert_same_bytes};

    use super::*;
    use crate::state::Entries;

    fn parameters() -> Vec<(String, Tensor)> {
        vec![
            ("a".to_owned(), Tensor::from_slice(&[1.0f32, -2.0]).set_requires_grad(true)),
            ("b".to_owned(), Tensor::from_slice(&[0.5f32]).set_requires_grad(true)),
        ]
    }

    fn gradients(at: f32) -> Vec<Tensor> {
        vec![Tensor::from_slice(&[0.5 * at, 1.0]), Tensor::from_slice(&[-1.0f32])]
    }

    fn saved(sgd: &mut Sgd) -> Entries {
        let mut entries = Entries::new();
        sgd.state(&mut State::writing(&mut entries)).unwrap();
        entries
    }

    const CONFIG: SgdConfig = SgdConfig { lr: 0.1, momentum: 0.9, weight_decay: 0.01 };

    /// Three steps by hand, in f64.
    #[test]
    fn equals_torch_over_three_steps() {
        let parameters = parameters();
        let mut sgd = Sgd::new(CONFIG, &parameters);
        for step in 1..=3 {
            sgd.step(&parameters, &gradients(step as f32));
        }
        // a0: g = 0.5, 1.0, 1.5.
        //   v1 = 0.5 + 0.01 * 1         = 0.51        p1 = 1 - 0.051        = 0.949
        //   v2 = 0.459 + 1.0 + 0.00949  = 1.46849     p2 = 0.949 - 0.146849 = 0.802151
        //   v3 = 1.321641 + 1.5 + 0.00802151 = 2.82966251   p3 = 0.519184749
        // a1: g = 1.
        //   v1 = 1 - 0.02 = 0.98        p1 = -2.098
        //   v2 = 0.882 + 1 - 0.02098 = 1.86102          p2 = -2.284102
        //   v3 = 1.674918 + 1 - 0.02284102 = 2.65207698 p3 = -2.549309698
        // b: g = -1.
        //   v1 = -0.995                 p1 = 0.5995
        //   v2 = -0.8955 - 1 + 0.005995 = -1.889505     p2 = 0.7884505
        //   v3 = -1.7005545 - 1 + 0.007884505 = -2.692669995   p3 = 1.0577174995
        assert_close("a", &parameters[0].1, &Tensor::from_slice(&[0.519_184_749f64, -2.549_309_698]), 1e-6);
        assert_close("b", &parameters[1].1, &Tensor::from_slice(&[1.057_717_499_5f64]), 1e-6);
        assert_close("v", &saved(&mut sgd)["a"], &Tensor::from_slice(&[2.829_662_51f64, 2.652_076_98]), 1e-6);
        assert!(parameters[0].1.requires_grad() && !saved(&mut sgd)["a"].requires_grad());
    }

    #[test]
    fn resumed_equals_never_stopped() {
        let (straight, resumed) = (parameters(), parameters());
        let mut sgd = Sgd::new(CONFIG, &straight);
        let mut first = Sgd::new(CONFIG, &resumed);
        for step in 1..=2 {
            sgd.step(&straight, &gradients(step as f32));
            first.step(&resumed, &gradients(step as f32));
        }
        let mut second = Sgd::new(CONFIG, &resumed);
        second.state(&mut State::reading(&saved(&mut first))).unwrap();
        sgd.step(&straight, &gradients(3.0));
        second.step(&resumed, &gradients(3.0));
        for ((name, a), (_, b)) in straight.iter().zip(&resumed) {
            assert_same_bytes(name, a, b);
        }
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused() {
        let mut sgd = Sgd::new(CONFIG, &parameters());
        let mut message = |change: &dyn Fn(&mut Entries)| {
            let mut entries = saved(&mut sgd);
            change(&mut entries);
            sgd.state(&mut State::reading(&entries)).unwrap_err().to_string()
        };
        assert_eq!(message(&|entries| drop(entries.remove("a"))), "there is no `a`");
        let stray = message(&|entries| drop(entries.insert("c".to_owned(), Tensor::from_slice(&[1.0f32]))));
        assert_eq!(stray, "`c` belongs to no parameter");
        let long = message(&|entries| drop(entries.insert("b".to_owned(), Tensor::from_slice(&[1.0f32, 2.0]))));
        assert_eq!(long, "`b` must be Float [1], got Float [2]");
    }

    #[test]
    fn a_new_rate_keeps_the_momentum() {
        let parameters = parameters();
        let mut sgd = Sgd::new(SgdConfig { weight_decay: 0.0, ..CONFIG }, &parameters);
        sgd.step(&parameters, &gradients(1.0));
        sgd.set_lr(0.0);
        sgd.step(&parameters, &gradients(1.0));
        // 0.9 * 0.5 + 0.5, and no move.
        assert_close("v", &saved(&mut sgd)["a"].get(0), &Tensor::from(0.95f32), 1e-6);
        assert_close("a", &parameters[0].1.get(0), &Tensor::from(0.95f32), 1e-6);
    }
}
