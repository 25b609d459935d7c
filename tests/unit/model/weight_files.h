// SPDX-License-Identifier: Apache-2.0
// Safetensors files made by hand, byte by byte, so that a test can write what no writer would.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace espalier::test {

inline void write_bytes(const std::filesystem::path& file, std::string_view bytes) {
  std::ofstream stream(file, std::ios::binary);
  stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!stream.flush()) {
    throw std::runtime_error("cannot write " + file.string());
  }
}

/// The eight bytes of a header length, whether true or not.
inline std::string length_bytes(std::uint64_t length) {
  std::string bytes;
  for (int shift = 0; shift < 64; shift += 8) {
    bytes += static_cast<char>(length >> shift & 0xFF);
  }
  return bytes;
}

inline std::string safetensors_bytes(std::string_view header, std::string_view data) {
  return length_bytes(header.size()).append(header).append(data);
}

/// One entry of a header: "name":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}
inline std::string entry(std::string_view name, std::string_view type, std::string_view shape,
                         std::string_view offsets) {
  return std::string("\"")
      .append(name)
      .append("\":{\"dtype\":\"")
      .append(type)
      .append("\",\"shape\":")
      .append(shape)
      .append(",\"data_offsets\":")
      .append(offsets)
      .append("}");
}

}  // namespace espalier::test
