//! Decisions that a seed makes. What is decided about one thing depends on that thing and the seed
//! alone, not on how many decisions were made before, so that a run can be repeated though its
//! processes race.

/// A source of decisions.
#[derive(Debug, Clone)]
pub(crate) struct Chance {
    seed: u64,
    random: fastrand::Rng,
}

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, random: fastrand::Rng::with_seed(seed) }
    }

    /// The decisions about the thing that these words name.
    pub(crate) fn about(&self, words: &[&str]) -> Self {
        // FNV-1a, 64 bits: the same in every build, which std's hash need not be.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ self.seed;
        for byte in words.iter().flat_map(|word| word.bytes().chain([0x1f])) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Self { seed: hash, random: fastrand::Rng::with_seed(hash) }
    }

    /// A number from 0 to `limit`, without it.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.random.u64(..limit)
    }

    /// Whether it is the one time out of `times`.
    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of `all`, which must not be empty.
    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.random.usize(..all.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_decided_about_a_thing_depends_on_nothing_else() {
        let decided = |seed: u64, before: u64| {
            let mut all = Chance::new(seed);
            assert!((0..before).all(|_| all.below(10) < 10));
            let mut one = all.about(&["send", "key", "1"]);
            [one.below(1000), one.below(1000)]
        };
        assert_eq!(decided(7, 0), decided(7, 5));
        assert_ne!(decided(7, 0), decided(8, 0));
        let words = |words: &[&str]| Chance::new(1).about(words).below(u64::MAX);
        assert_ne!(words(&["ab", "c"]), words(&["a", "bc"]));
    }
}
