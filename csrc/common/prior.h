// The prior of a divergence, as the host hands it to the kernels.
#pragma once

namespace seq2exp {

// Beta(p, q) with r = p / (p + q); constant: log B(p, q) - log(2 pi) / 2 - p log r - q log(1 - r).
struct BetaPrior {
  float p, q, log_r, log_1r, constant;
};

BetaPrior beta_prior(double p, double q);

}  // namespace seq2exp
