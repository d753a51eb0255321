//! Reads a dataset, draws one epoch of class-balanced batches, and says what that cost.
//!
//! ```sh
//! cargo run --release -p c2r-data --example load -- tiny-imagenet DIR
//! ```
//!
//! Prints one JSON object: images, seconds to load, seconds of the epoch, and memory in MB from `/proc/self/status`
//! (Linux): `anonymous` is the program's own, `mapped` are pages of files, which the system takes back when it needs them.
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::{fs, path::Path, time::Instant};

use c2r_base::Seed;
use c2r_data::{ClassSampler, LoadEvent, load_with};
use tch::Device;

/// A field of `/proc/self/status` in MB; 0 where there is none.
fn memory(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1000
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [name, folder] = &words[..] else { return Err("say which dataset and where: load NAME DIR".into()) };
    let (mut decoded, mut anonymous) = (0, memory("RssAnon"));
    let start = Instant::now();
    let data = load_with(name, Some(Path::new(folder)), &mut |event| {
        anonymous = anonymous.max(memory("RssAnon"));
        if let LoadEvent::Decoded { n_images } = event {
            decoded = n_images;
        }
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let loaded = memory("RssAnon").max(anonymous);

    let (mut sampler, per_class) = (ClassSampler::new(Seed::new(0)), 32);
    let start = Instant::now();
    let mut sum = 0.0;
    for t in 0..(data.train.len() / (data.train.n_classes() * per_class)).max(1) as u64 {
        for class in 0..data.train.n_classes() {
            let (images, _) = data.train.batch(&sampler.positions(&data.train, t, class, per_class), Device::Cpu);
            sum += images.double_value(&[0, 0, 0, 0]);
        }
        anonymous = anonymous.max(memory("RssAnon"));
    }
    println!(
        "{{\"images\": {}, \"pixels_mb\": {}, \"decoded\": {decoded}, \"load_seconds\": {seconds:.3}, \
         \"epoch_seconds\": {:.3}, \"anonymous_mb_loading\": {loaded}, \"anonymous_mb_peak\": {}, \"mapped_mb\": {}, \
         \"first_pixels\": {sum:.3}}}",
        data.train.len() + data.test.len(),
        (data.train.images().len() + data.test.images().len()) / 1_000_000,
        start.elapsed().as_secs_f64(),
        anonymous.max(loaded),
        memory("RssFile"),
    );
    Ok(())
}
