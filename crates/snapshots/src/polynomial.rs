//! The polynomial that a repository's config carries for restic's chunker.
//!
//! We chunk by a gear hash and never use it, but restic refuses a config whose polynomial of degree 53 over GF(2) is
//! not irreducible, and chunks with it when it writes to the same repository.

const DEGREE: u32 = 53;

/// Draws random polynomials until one is irreducible (one of about 53 is).
pub(crate) fn random_irreducible() -> u64 {
    loop {
        let candidate = (rand::random::<u64>() & ((1 << DEGREE) - 1)) | 1 << DEGREE | 1;
        if is_irreducible(candidate) {
            return candidate;
        }
    }
}

fn degree(p: u64) -> u32 {
    63 - p.leading_zeros().min(63)
}

fn reduce(mut x: u64, p: u64) -> u64 {
    while x != 0 && degree(x) >= degree(p) {
        x ^= p << (degree(x) - degree(p));
        if p == 1 {
            return 0;
        }
    }
    x
}

fn multiply(mut a: u64, mut b: u64, p: u64) -> u64 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        b >>= 1;
        a <<= 1;
        if a >> degree(p) & 1 != 0 {
            a ^= p;
        }
    }
    product
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, reduce(a, b));
    }
    a
}

/// Ben-Or's test: `p` has no factor of degree `i` when it shares none with `x^(2^i) - x`.
fn is_irreducible(p: u64) -> bool {
    let mut power = 2; // x
    for _ in 0..degree(p) / 2 {
        power = multiply(power, power, p);
        if gcd(p, power ^ 2) != 1 {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_irreducible_polynomials() {
        // From the documentation of restic/chunker.
        assert!(is_irreducible(0x003D_A335_8B4D_C173));
        assert!(!is_irreducible(0x003D_A335_8B4D_C173 << 1));
        // x^2 + 1 = (x + 1)^2; x^2 + x + 1 is irreducible; so is x^3 + x + 1.
        assert!(!is_irreducible(0b101));
        assert!(is_irreducible(0b111));
        assert!(is_irreducible(0b1011));
        assert!(!is_irreducible(0b1111));
    }
}
