// SPDX-License-Identifier: Apache-2.0
// Remainders are packed in groups of eight elements: b bits each make b bytes, the first element in the lowest bits.
#include "peft/meft_streams.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>

#include "common/check.h"
#include "common/error.h"
#include "model/parallel.h"

namespace espalier::peft {
namespace {

constexpr std::int64_t kGroup = 8;
constexpr std::int64_t kTaskElements = 8192;  // whole groups; some 20 microseconds of work
constexpr double kLimit = 0x1p31;             // of an int32

std::int64_t packed_bytes(std::int64_t numel, int bits) {
  return (numel + kGroup - 1) / kGroup * bits;
}

/// Calls body(begin, end) for every group of `numel` elements, on several threads.
template <typename Body>
void over_groups(std::int64_t numel, const Body& body) {
  const std::int64_t num_tasks = (numel + kTaskElements - 1) / kTaskElements;
  model::parallel_ranges(num_tasks, /*grain=*/4, [&](std::int64_t first, std::int64_t last) {
    const std::int64_t end = std::min(last * kTaskElements, numel);
    for (std::int64_t begin = first * kTaskElements; begin < end; begin += kGroup) {
      body(begin, std::min(begin + kGroup, end));
    }
  });
}

/// Whether `integer` is one and fits an int32; false for NaN.
bool fits(double integer) {
  return integer >= -kLimit && integer < kLimit;
}

/// sum = floor(x / k) + round(branch * unit). `packed` may be null. Returns whether every sum fits.
template <typename Real>
bool join_groups(const std::int32_t* x, std::int32_t k, const Real* branch, double unit, std::int64_t numel,
                 std::int32_t* sum, std::uint8_t* packed) {
  const int bits = remainder_bits(k);
  std::atomic<bool> all_fit{true};
  over_groups(numel, [&](std::int64_t begin, std::int64_t end) {
    std::uint64_t word = 0;
    bool is_good = true;
    for (std::int64_t i = begin; i < end; ++i) {
      std::int32_t quotient = x[i] / k;
      std::int32_t remainder = x[i] % k;
      if (remainder < 0) {
        remainder += k;
        --quotient;
      }
      word |= static_cast<std::uint64_t>(remainder) << (bits * (i - begin));
      const double total = quotient + std::nearbyint(static_cast<double>(branch[i]) * unit);
      is_good = is_good && fits(total);
      sum[i] = is_good ? static_cast<std::int32_t>(total) : 0;
    }
    for (int byte = 0; packed != nullptr && byte < bits; ++byte) {
      packed[begin / kGroup * bits + byte] = static_cast<std::uint8_t>(word >> (8 * byte));
    }
    if (!is_good) {
      all_fit.store(false, std::memory_order_relaxed);
    }
  });
  return all_fit.load();
}

/// x = k * (sum - round(branch * unit)) + remainder.
template <typename Real>
void separate_groups(const std::int32_t* sum, std::int32_t k, const Real* branch, double unit, std::int64_t numel,
                     const std::uint8_t* packed, std::int32_t* x) {
  const int bits = remainder_bits(k);
  const std::uint64_t mask = (std::uint64_t{1} << bits) - 1;
  over_groups(numel, [&](std::int64_t begin, std::int64_t end) {
    std::uint64_t word = 0;
    for (int byte = 0; byte < bits; ++byte) {
      word |= static_cast<std::uint64_t>(packed[begin / kGroup * bits + byte]) << (8 * byte);
    }
    for (std::int64_t i = begin; i < end; ++i) {
      const auto rounded = static_cast<std::int64_t>(std::nearbyint(static_cast<double>(branch[i]) * unit));
      const auto remainder = static_cast<std::int64_t>((word >> (bits * (i - begin))) & mask);
      x[i] = static_cast<std::int32_t>(k * (sum[i] - rounded) + remainder);
    }
  });
}

/// remainders [N] (int64) -> bytes, with plain operations.
at::Tensor pack(const at::Tensor& remainders, int bits) {
  const std::int64_t num_groups = (remainders.numel() + kGroup - 1) / kGroup;
  const at::Tensor padded = at::constant_pad_nd(remainders, {0, num_groups * kGroup - remainders.numel()});
  const auto options = remainders.options();
  const at::Tensor words =
      padded.view({num_groups, kGroup}).bitwise_left_shift(at::arange(kGroup, options) * bits).sum(1);
  const at::Tensor bytes = words.unsqueeze(1).bitwise_right_shift(at::arange(bits, options) * 8).bitwise_and(0xff);
  return bytes.to(at::kByte).flatten();
}

at::Tensor unpack(const at::Tensor& packed, int bits, std::int64_t numel) {
  const at::Tensor bytes = packed.to(at::kLong).view({-1, bits});
  const auto options = bytes.options();
  const at::Tensor words = bytes.bitwise_left_shift(at::arange(bits, options) * 8).sum(1);
  const at::Tensor remainders = words.unsqueeze(1).bitwise_right_shift(at::arange(kGroup, options) * bits);
  return remainders.bitwise_and((1 << bits) - 1).flatten().narrow(0, 0, numel);
}

class FixedPoint final : public StreamArithmetic {
 public:
  FixedPoint(std::int64_t fraction_bits, at::ScalarType real_type, bool has_kernel)
      : fraction_bits_(fraction_bits),
        unit_(std::ldexp(1.0, static_cast<int>(fraction_bits))),
        real_type_(real_type),
        has_kernel_(has_kernel) {}

  [[nodiscard]] at::ScalarType stream_type() const override { return at::kInt; }

  [[nodiscard]] at::Tensor enter(const at::Tensor& x, const std::string& name) const override {
    return join(at::zeros(x.sizes(), x.options().dtype(at::kInt)), {}, x.to(real_type_), /*keeps_remainder=*/false,
                name)
        .sum;
  }
  [[nodiscard]] at::Tensor read(const at::Tensor& stream) const override {
    return stream.to(real_type_).mul_(1 / unit_);  // a power of two: exact
  }
  [[nodiscard]] Joined join(const at::Tensor& x, const StreamScale& scale, const at::Tensor& branch,
                            bool keeps_remainder, const std::string& name) const override {
    const int bits = keeps_remainder ? remainder_bits(scale.divisor) : 0;
    Joined joined;
    const bool all_fit = has_kernel_ && x.is_cpu() ? join_on_cpu(x, scale, branch, bits, joined)
                                                   : join_anywhere(x, scale, branch, bits, joined);
    if (!all_fit) {
      throw NumericError(fmt::format(
          "{}: expected streams within +-{:g}, the range of peft.meft.fraction_bits={}; found a larger or non-finite "
          "value. Lower peft.meft.fraction_bits (each bit less doubles the range), or the learning rate where the "
          "training diverged",
          name, kLimit / unit_, fraction_bits_));
    }
    return joined;
  }
  [[nodiscard]] at::Tensor separate(const at::Tensor& sum, const StreamScale& scale, const at::Tensor& branch,
                                    const at::Tensor& remainder) const override {
    ESPALIER_CHECK(remainder.defined() == (scale.divisor > 1), "a remainder for k = {}", scale.divisor);
    return has_kernel_ && sum.is_cpu() ? separate_on_cpu(sum, scale, branch, remainder)
                                       : separate_anywhere(sum, scale, branch, remainder);
  }

 private:
  [[nodiscard]] bool join_on_cpu(const at::Tensor& x, const StreamScale& scale, const at::Tensor& branch, int bits,
                                 Joined& joined) const {
    const at::Tensor from = x.contiguous(), added = branch.contiguous();
    joined.sum = at::empty_like(from);
    if (bits > 0) joined.remainder = at::empty({packed_bytes(x.numel(), bits)}, x.options().dtype(at::kByte));
    const auto run = [&](const auto* reals) {
      return join_groups(from.const_data_ptr<std::int32_t>(), static_cast<std::int32_t>(scale.divisor), reals, unit_,
                         x.numel(), joined.sum.data_ptr<std::int32_t>(),
                         bits > 0 ? joined.remainder.data_ptr<std::uint8_t>() : nullptr);
    };
    return real_type_ == at::kDouble ? run(added.const_data_ptr<double>()) : run(added.const_data_ptr<float>());
  }
  [[nodiscard]] at::Tensor separate_on_cpu(const at::Tensor& sum, const StreamScale& scale, const at::Tensor& branch,
                                           const at::Tensor& remainder) const {
    const at::Tensor from = sum.contiguous(), added = branch.contiguous();
    at::Tensor x = at::empty_like(from);
    const auto run = [&](const auto* reals) {
      separate_groups(from.const_data_ptr<std::int32_t>(), static_cast<std::int32_t>(scale.divisor), reals, unit_,
                      x.numel(), remainder.defined() ? remainder.const_data_ptr<std::uint8_t>() : nullptr,
                      x.data_ptr<std::int32_t>());
    };
    real_type_ == at::kDouble ? run(added.const_data_ptr<double>()) : run(added.const_data_ptr<float>());
    return x;
  }

  /// 2^bits * branch as whole numbers, in double.
  [[nodiscard]] at::Tensor rounded(const at::Tensor& branch) const {
    return branch.to(at::kDouble).mul_(unit_).round_();
  }
  [[nodiscard]] bool join_anywhere(const at::Tensor& x, const StreamScale& scale, const at::Tensor& branch, int bits,
                                   Joined& joined) const {
    const at::Tensor remainders = at::remainder(x, scale.divisor);
    const at::Tensor total = (x - remainders).div(scale.divisor, "trunc").to(at::kDouble).add_(rounded(branch));
    if (bits > 0) joined.remainder = pack(remainders.flatten().to(at::kLong), bits);
    const bool all_fit = (total.ge(-kLimit).logical_and_(total.lt(kLimit))).all().item<bool>();
    if (all_fit) joined.sum = total.to(at::kInt);
    return all_fit;
  }
  [[nodiscard]] at::Tensor separate_anywhere(const at::Tensor& sum, const StreamScale& scale, const at::Tensor& branch,
                                             const at::Tensor& remainder) const {
    at::Tensor x = (sum.to(at::kDouble) - rounded(branch)).mul_(static_cast<double>(scale.divisor));
    if (remainder.defined()) x.add_(unpack(remainder, remainder_bits(scale.divisor), x.numel()).view(x.sizes()));
    return x.to(at::kInt);
  }

  std::int64_t fraction_bits_;
  double unit_;
  at::ScalarType real_type_;
  bool has_kernel_;
};

class FloatingPoint final : public StreamArithmetic {
 public:
  explicit FloatingPoint(at::ScalarType type) : type_(type) {}
  [[nodiscard]] at::ScalarType stream_type() const override { return type_; }
  [[nodiscard]] at::Tensor enter(const at::Tensor& x, const std::string& /*name*/) const override {
    return x.to(type_);
  }
  [[nodiscard]] at::Tensor read(const at::Tensor& stream) const override { return stream; }
  [[nodiscard]] Joined join(const at::Tensor& x, const StreamScale& scale, const at::Tensor& branch,
                            bool /*keeps_remainder*/, const std::string& /*name*/) const override {
    return {x * scale.value + branch, {}};
  }
  [[nodiscard]] at::Tensor separate(const at::Tensor& sum, const StreamScale& scale, const at::Tensor& branch,
                                    const at::Tensor& /*remainder*/) const override {
    return (sum - branch).div_(scale.value);
  }

 private:
  at::ScalarType type_;
};

}  // namespace

int remainder_bits(std::int64_t divisor) {
  return static_cast<int>(std::bit_width(static_cast<std::uint64_t>(divisor - 1)));
}

std::unique_ptr<StreamArithmetic> make_fixed_point(std::int64_t fraction_bits, at::ScalarType real_type,
                                                   bool has_kernel) {
  return std::make_unique<FixedPoint>(fraction_bits, real_type, has_kernel);
}

std::unique_ptr<StreamArithmetic> make_floating_point(at::ScalarType real_type) {
  return std::make_unique<FloatingPoint>(real_type);
}

}  // namespace espalier::peft
