use crate::ArchiveError;

/// How much an archive may unpack to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Files and folders.
    pub entries: u64,
    /// Bytes of all files together.
    pub bytes: u64,
    /// Unpacked bytes for each byte of the archive; the first MiB is free.
    pub ratio: u64,
}

impl Limits {
    /// For datasets: twice the entries of the largest archive in `data/datasets.toml` (Tiny-ImageNet, about 120,000), and
    /// more bytes than any of them unpacks to. Photographs hardly compress, so a ratio of 20 is a bomb.
    pub const DATASET: Self = Self { entries: 250_000, bytes: 4 << 30, ratio: 20 };

    /// For files of arrays (`.npz`, `torch.save`): ten times the bytes of the largest distilled sets of the field
    /// (Tiny-ImageNet, 50 images per class, f32: 0.5 GB), and the best ratio that deflate can reach (258 bytes in two
    /// bits), because an array may well be all zeros.
    pub const ARRAYS: Self = Self { entries: 100_000, bytes: 4 << 30, ratio: 1032 };

    /// The most bytes that an archive of `length` bytes may unpack to.
    pub(crate) fn bytes_for(&self, length: u64) -> u64 {
        const FREE: u64 = 1 << 20;
        self.bytes.min(length.saturating_mul(self.ratio).saturating_add(FREE))
    }

    pub(crate) fn check_entries(&self, n: u64) -> Result<(), ArchiveError> {
        if n <= self.entries {
            return Ok(());
        }
        Err(ArchiveError::Limit(format!("the archive has {n} entries or more; at most {} are unpacked", self.entries)))
    }

    pub(crate) fn too_many_bytes(&self, length: u64) -> ArchiveError {
        let (most, ratio) = (self.bytes_for(length), self.ratio);
        ArchiveError::Limit(format!(
            "the archive ({length} bytes) unpacks to more than {most} bytes; at most {} bytes and {ratio} times its \
             own size are unpacked",
            self.bytes
        ))
    }
}
