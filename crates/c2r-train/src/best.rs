use std::collections::BTreeMap;

use c2r_base::{ClassifierError, LabelledImages};
use c2r_models::Model;
use tch::Tensor;

use crate::{
    TrainError, accuracy,
    state::{State, StateError},
};

/// The most accurate network among those that were offered, for protocols that do not keep the last one.
#[derive(Debug, Default)]
pub struct Best {
    kept: Option<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    steps: u64,
    accuracy: f64,
    parameters: BTreeMap<String, Tensor>,
}

const AT: &str = "best.at";
const PARAMETER: &str = "best.model.";

impl Best {
    /// Measures `model`, as it is after `steps` steps, on `images` (see [`accuracy`]) and keeps a copy of its parameters if
    /// it is more accurate than all before. Of equals the first one stays.
    ///
    /// # Errors
    /// [`ClassifierError`] if `images` do not have the shape that `model` takes.
    pub fn offer(
        &mut self,
        model: &Model,
        steps: u64,
        images: &LabelledImages,
        batch_size: usize,
    ) -> Result<(), ClassifierError> {
        let accuracy = accuracy(model, images, batch_size)?;
        if self.kept.as_ref().is_none_or(|best| accuracy > best.accuracy) {
            self.kept = Some(Kept { steps, accuracy, parameters: model.state() });
        }
        Ok(())
    }

    /// Steps and accuracy, in `[0, 1]`, of the best one; `None` before the first offer.
    pub fn found(&self) -> Option<(u64, f64)> {
        self.kept.as_ref().map(|best| (best.steps, best.accuracy))
    }

    /// Gives `model` the parameters of the best one.
    ///
    /// # Errors
    /// [`TrainError::Model`] if it is another network.
    pub fn restore(&self, model: &Model) -> Result<(), TrainError> {
        self.kept.as_ref().map_or(Ok(()), |best| Ok(model.load_state(&best.parameters)?))
    }

    /// Visits everything that continuing needs, by names that [`crate::Trainer::state`] does not use.
    ///
    /// # Errors
    /// [`StateError`] naming what does not fit.
    pub fn state(&mut self, state: &mut State<'_>) -> Result<(), StateError> {
        state.optional(AT, &mut self.kept, || Ok(Kept::default()))?;
        let Some(best) = &mut self.kept else { return Ok(()) };
        let mut at = [best.steps as f64, best.accuracy];
        state.numbers(AT, &mut at, 0.0..=f64::MAX)?;
        (best.steps, best.accuracy) = (at[0] as u64, at[1]);
        if state.reads() {
            best.parameters = state.below(PARAMETER);
        } else {
            for (name, tensor) in &best.parameters {
                state.put(&format!("{PARAMETER}{name}"), tensor.shallow_clone());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use c2r_base::Seed;
    use c2r_models::{Frozen, ModelInput, ModelSpec};
    use c2r_testkit::assert_same_bytes;
    use tch::Device;

    use super::*;
    use crate::state::Entries;

    #[test]
    fn the_most_accurate_one_stays_the_first_of_equals() {
        let digits = c2r_data::load("digits", None).unwrap();
        let images = digits.train.subset_per_class(5).to_labelled();
        let input = ModelInput { channels: 1, height: 8, width: 8, n_classes: 10, mean: vec![0.3], std: vec![0.37] };
        let model = |seed| Model::new(&ModelSpec::convnet(2, 8), &input, Seed::new(seed), Device::Cpu).unwrap();
        let accuracies: Vec<f64> =
            (0..6).map(|seed| accuracy(&Frozen::new(model(seed)), &images, 50).unwrap()).collect();
        let highest = accuracies.iter().copied().fold(0.0, f64::max);
        let first = accuracies.iter().position(|&accuracy| accuracy == highest).unwrap();
        assert!(accuracies.iter().any(|&accuracy| accuracy < highest), "{accuracies:?}");

        let mut best = Best::default();
        assert_eq!(best.found(), None);
        for seed in 0..3 {
            best.offer(&model(seed), seed + 1, &images, 7).unwrap();
        }
        // Stopped and continued.
        let mut saved = Entries::new();
        best.state(&mut State::writing(&mut saved)).unwrap();
        let mut best = Best::default();
        best.state(&mut State::reading(&saved)).unwrap();
        for seed in (3..6).chain([first as u64]) {
            best.offer(&model(seed), seed + 1, &images, 50).unwrap();
        }
        assert_eq!(best.found(), Some((first as u64 + 1, highest)));
        let restored = model(9);
        best.restore(&restored).unwrap();
        for (name, tensor) in model(first as u64).state() {
            assert_same_bytes(&name, &tensor, &restored.state()[&name]);
        }
    }

    #[test]
    fn a_foreign_state_is_refused() {
        let state = BTreeMap::from([(AT.to_owned(), Tensor::from_slice(&[1i64]))]);
        let mut best = Best::default();
        let message = best.state(&mut State::reading(&state)).unwrap_err().to_string();
        assert_eq!(message, "`best.at` must be Double [2], got Int64 [1]");
        best.state(&mut State::reading(&Entries::new())).unwrap();
        assert_eq!(best.found(), None);
    }
}
