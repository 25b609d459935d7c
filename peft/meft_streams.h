// SPDX-License-Identifier: Apache-2.0
// Arithmetic of the two streams of a reversible backbone: y = scale * x + branch, and x back from y. In fixed point the
// way back is exact at any depth; in floating point it multiplies an error by 1 / scale.
// B batch, T tokens, D width
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>

namespace espalier::peft {

/// What travels between reversible blocks; both [B, T, D].
struct Streams {
  at::Tensor first, second;
};

/// A constant that multiplies a stream: lambda or beta.
struct StreamScale {
  double value = 1;
  std::int64_t divisor = 1;  ///< k of the fixed-point streams, for which value is 1 / k
};

class StreamArithmetic {
 public:
  virtual ~StreamArithmetic() = default;
  struct Joined {
    at::Tensor sum;        ///< [B, T, D]
    at::Tensor remainder;  ///< what the way back needs besides, packed: uint8 [bytes]; undefined: nothing
  };
  /// Type of a stream, which stands for real numbers of the type that the arithmetic was made for, whatever F and G
  /// compute in.
  [[nodiscard]] virtual at::ScalarType stream_type() const = 0;

  /// A stream that holds `x`, real numbers of any type. `name`: of the block, for errors here and below. Throws: as
  /// join().
  [[nodiscard]] virtual at::Tensor enter(const at::Tensor& x, const std::string& name) const = 0;
  /// The real numbers of a stream.
  [[nodiscard]] virtual at::Tensor read(const at::Tensor& stream) const = 0;
  /// scale * x + branch; `branch` real numbers, as of read(). Throws: NumericError where the sum cannot be represented.
  [[nodiscard]] virtual Joined join(const at::Tensor& x, const StreamScale& scale, const at::Tensor& branch,
                                    bool keeps_remainder, const std::string& name) const = 0;
  /// x of join(), from its sum, the same branch and the remainder. Throws: InternalError where a remainder of fixed
  /// point is missing.
  [[nodiscard]] virtual at::Tensor separate(const at::Tensor& sum, const StreamScale& scale, const at::Tensor& branch,
                                            const at::Tensor& remainder) const = 0;
};

/// int32 streams with `fraction_bits` bits behind the point: floor(X / k) + round(2^bits * branch), whose remainder
/// X mod k is kept in remainder_bits(k) bits for each element. `has_kernel` false: plain operations on the CPU too, as
/// on other devices; the oracle of the kernel.
std::unique_ptr<StreamArithmetic> make_fixed_point(std::int64_t fraction_bits, at::ScalarType real_type,
                                                   bool has_kernel = true);
std::unique_ptr<StreamArithmetic> make_floating_point(at::ScalarType real_type);

/// Largest k of fixed-point streams.
inline constexpr std::int64_t kMaxDivisor = 128;
/// Bits of a number of [0, divisor).
int remainder_bits(std::int64_t divisor);

}  // namespace espalier::peft
