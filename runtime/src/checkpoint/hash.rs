//! A 64-bit hash that detects accidental changes, but not forgery.
//!
//! Words of 8 bytes are mixed in one by one: `h = rotate((h ^ word) · M, 29)`. Each step is a bijection of `h` and of
//! the word, so a change within one word always changes the result. Any other change goes unnoticed with probability
//! 2^-64.

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash of some bytes, including their number.
pub fn hash(bytes: &[u8]) -> u64 {
    let mix = |h: u64, word: u64| (h ^ word).wrapping_mul(MULTIPLIER).rotate_left(29);
    let (words, rest) = bytes.as_chunks::<8>();
    let mut h = words.iter().fold(bytes.len() as u64, |h, w| mix(h, u64::from_le_bytes(*w)));
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        h = mix(h, u64::from_le_bytes(last));
    }
    h = (h ^ (h >> 32)).wrapping_mul(MULTIPLIER);
    h ^ (h >> 29)
}

/// The text form of a hash in an index.
pub fn text(hash: u64) -> String {
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_every_lost_byte_shows() {
        let bytes: Vec<u8> = (0..100u32).map(|i| (i * i * 7) as u8).collect();
        let whole = hash(&bytes);
        for bit in 0..800 {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(hash(&other), whole, "bit {bit}");
        }
        for len in 0..100 {
            assert_ne!(hash(&bytes[..len]), whole);
        }
        assert_ne!(hash(&[0; 8]), hash(&[0; 7]));
        assert_ne!(hash(&[]), hash(&[0]));
    }
}
