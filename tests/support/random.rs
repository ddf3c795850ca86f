//! Choices that one number decides.

/// splitmix64: small, and enough for choosing.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Choices of its own for one part of a run, so that what one part chooses does not change what the
    /// others do.
    pub fn of(seed: u64, part: &str) -> Self {
        // FNV-1a, because the hasher of the standard library may change.
        let hash = part.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
        });
        let mut random = Random(seed ^ hash);
        random.next();
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    pub fn millis(&mut self, below: u64) -> std::time::Duration {
        std::time::Duration::from_millis(self.below(below))
    }
}
