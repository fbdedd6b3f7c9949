#include "common/prior.h"

#include <cmath>

namespace seq2exp {

BetaPrior beta_prior(double p, double q) {
  const double log_r = std::log(p / (p + q)), log_1r = std::log(q / (p + q));
  const double log_beta = std::lgamma(p) + std::lgamma(q) - std::lgamma(p + q);
  const double constant = log_beta - 0.5 * std::log(2 * 3.14159265358979323846) - p * log_r - q * log_1r;
  return {static_cast<float>(p), static_cast<float>(q), static_cast<float>(log_r), static_cast<float>(log_1r),
          static_cast<float>(constant)};
}

}  // namespace seq2exp
