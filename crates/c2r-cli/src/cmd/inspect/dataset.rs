//! Datasets: counts, repeated images, the order of classes.

use std::{collections::HashSet, path::Path};

use c2r_data::{Dataset, Provenance, Split};
use c2r_run::terminal::counted;

use super::{
    doubts::{self, GRID_COLUMNS},
    report::{Report, range_of_counts},
};

/// Reads the dataset as every other command does, with the same errors.
pub(super) fn dataset(
    report: &mut Report,
    name: &str,
    data: Option<&Path>,
    grid: Option<&Path>,
) -> anyhow::Result<bool> {
    let Dataset { spec, train, test, notes } = c2r_data::load(name, data).map_err(crate::data::coded)?;
    report.title("dataset", &spec.title, format!("dataset `{}`", spec.name));
    report.line("images", format!("u8 {:?} (channels, height, width)", spec.shape()));
    report.line("classes", format!("{}: {}", spec.classes.len(), spec.classes.join(", ")));
    let pixels = [train.images(), test.images()];
    let mut seen = HashSet::new();
    for ((name, split), images) in [("train", &train), ("test", &test)].into_iter().zip(&pixels) {
        let sizes: Vec<usize> = (0..split.n_classes()).map(|class| split.class_positions(class).len()).collect();
        let n = split.len();
        report.line(name, format!("{}, {}, sha256 {}", counted(n, "image"), range_of_counts(&sizes), split.sha256()));
        if let Some(class) = sizes.iter().position(|&n| n == 0) {
            report.doubt(format!("{name}: class {class} (`{}`) is empty", spec.classes[class]));
        }
        let mut in_split = HashSet::new();
        let (mut repeated, mut shared) = (0, 0);
        for image in images.outer_iter() {
            shared += usize::from(seen.contains(&image));
            repeated += usize::from(!in_split.insert(image));
        }
        if repeated > 0 {
            report.doubt(format!("{name}: {repeated} of {n} images repeat another image of the split"));
        }
        if shared > 0 {
            report.doubt(format!("{name}: {shared} of {n} images are also in the training split"));
        }
        seen.extend(in_split);
    }
    doubts::class_order(report, &spec.classes);
    report.line("mean, std", format!("{:?}, {:?} (for the model)", spec.mean, spec.std));
    report.line("tables use", format!("{} at linf {}", spec.model, spec.epsilon));
    report.line("licence", &spec.licence);
    report.line("provenance", Provenance::of(name, data).to_string());
    notes.iter().for_each(|note| report.line("note", note));
    if let Some(grid) = grid {
        draw(&train, grid)?;
    }
    Ok(true)
}

fn draw(split: &Split, grid: &Path) -> anyhow::Result<()> {
    let chosen = split.subset_per_class(GRID_COLUMNS);
    let images = chosen.images().mapv(|byte| f32::from(byte) / 255.0);
    let rows: Vec<Vec<usize>> = (0..chosen.n_classes()).map(|class| chosen.class_positions(class).to_vec()).collect();
    Ok(c2r_data::write_grid(grid, images.view(), &rows)?)
}
