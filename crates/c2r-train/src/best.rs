use std::collections::BTreeMap;

use c2r_base::{ClassifierError, LabelledImages};
use c2r_models::Model;
use tch::{Kind, Tensor};

use crate::{TrainError, accuracy};

/// The most accurate network among those that were offered, for protocols that do not keep the last one.
#[derive(Debug, Default)]
pub struct Best {
    found: Option<Found>,
}

#[derive(Debug)]
struct Found {
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
        if self.found.as_ref().is_none_or(|best| accuracy > best.accuracy) {
            self.found = Some(Found { steps, accuracy, parameters: model.state() });
        }
        Ok(())
    }

    /// Steps and accuracy, in `[0, 1]`, of the best one; `None` before the first offer.
    pub fn found(&self) -> Option<(u64, f64)> {
        self.found.as_ref().map(|best| (best.steps, best.accuracy))
    }

    /// Gives `model` the parameters of the best one.
    ///
    /// # Errors
    /// [`TrainError::Model`] if it is another network.
    pub fn restore(&self, model: &Model) -> Result<(), TrainError> {
        self.found.as_ref().map_or(Ok(()), |best| Ok(model.load_state(&best.parameters)?))
    }

    /// Everything that continuing needs, by names that [`crate::Trainer::state`] does not use.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let Some(best) = &self.found else { return BTreeMap::new() };
        let copy = |(name, tensor): (&String, &Tensor)| (format!("{PARAMETER}{name}"), tensor.shallow_clone());
        let mut state: BTreeMap<String, Tensor> = best.parameters.iter().map(copy).collect();
        state.insert(AT.to_owned(), Tensor::from_slice(&[best.steps as f64, best.accuracy]));
        state
    }

    /// Continues from [`Best::state`], which may lie in a file with other tensors.
    ///
    /// # Errors
    /// [`TrainError::State`] if it is not one.
    pub fn load_state(state: &BTreeMap<String, Tensor>) -> Result<Self, TrainError> {
        let Some(at) = state.get(AT) else { return Ok(Self::default()) };
        if at.kind() != Kind::Double || at.size() != [2] {
            let differences = vec![format!("`{AT}` is {:?} {:?} where Double [2] is expected", at.kind(), at.size())];
            return Err(TrainError::State { differences });
        }
        let part = |(name, tensor): (&String, &Tensor)| {
            Some((name.strip_prefix(PARAMETER)?.to_owned(), tensor.shallow_clone()))
        };
        let (steps, accuracy) = (at.double_value(&[0]) as u64, at.double_value(&[1]));
        Ok(Self { found: Some(Found { steps, accuracy, parameters: state.iter().filter_map(part).collect() }) })
    }
}

#[cfg(test)]
mod tests {
    use c2r_base::Seed;
    use c2r_models::{Frozen, ModelInput, ModelSpec};
    use c2r_testkit::assert_same_bytes;
    use tch::Device;

    use super::*;

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
        let mut best = Best::load_state(&best.state()).unwrap();
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
        assert!(Best::load_state(&state).unwrap_err().to_string().contains("`best.at` is Int64 [1]"));
        assert_eq!(Best::load_state(&BTreeMap::new()).unwrap().found(), None);
    }
}
