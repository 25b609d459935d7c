// SPDX-License-Identifier: Apache-2.0
// The safetensors format: u64 header length (little-endian), a JSON object {name: {dtype, shape, data_offsets}, ...},
// then the bytes of the tensors. The file is untrusted: every number is compared with the file's real size before
// anything follows it.
#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <deque>
#include <limits>
#include <numeric>

#include "common/check.h"
#include "common/error.h"
#include "model/mapped_file.h"
#include "model/stored_type.h"
#include "model/strict_json.h"
#include "model/weights.h"

namespace espalier::model {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are views of little-endian files");

constexpr std::size_t kLengthBytes = sizeof(std::uint64_t);
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation
constexpr std::size_t kMaxDims = 64;                    // what tensor iterators carry
constexpr std::string_view kMetadataKey = "__metadata__";

struct Entry {
  std::string name;
  at::ScalarType type = at::kFloat;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;  // within the data, which starts after the header
};

ConfigError damage(const std::filesystem::path& file, std::string_view where, std::string_view expected,
                   std::string_view found) {
  return ConfigError(fmt::format(
      "{}: {}: expected {}, found {}; the file is damaged or no safetensors file: fetch or convert it again",
      file.string(), where, expected, found));
}

/// Bytes of a tensor, or nothing if they do not fit into 63 bits. Sizes of 0 count as 1, so that strides fit too.
std::optional<std::uint64_t> checked_bytes(const Entry& entry) {
  std::uint64_t bytes = c10::elementSize(entry.type);
  bool is_empty = false;
  for (const std::int64_t size : entry.shape) {
    is_empty |= size == 0;
    const auto factor = static_cast<std::uint64_t>(std::max<std::int64_t>(size, 1));
    if (bytes > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) / factor) {
      return std::nullopt;
    }
    bytes *= factor;
  }
  return is_empty ? 0 : bytes;
}

/// {"name": {"dtype": text, "shape": [n, ...], "data_offsets": [begin, end]}, ..., "__metadata__": {text: text, ...}}
class HeaderForm : public StrictJson {
 public:
  explicit HeaderForm(const std::filesystem::path& file) : file_(file) {}

  std::deque<Entry> take_entries() { return std::move(entries_); }

  bool start_object(std::size_t /*num_elements*/) override {
    if (place_ == Place::kStart) {
      place_ = Place::kRoot;
    } else if (place_ == Place::kRoot && entry_.name == kMetadataKey) {
      place_ = Place::kMetadata;
    } else if (place_ == Place::kRoot) {
      place_ = Place::kTensor;
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(string_t& name) override {
    if (place_ == Place::kRoot) {
      if (name == kMetadataKey && std::exchange(has_metadata_, true)) {
        unexpected("the key \"__metadata__\" twice");
      }
      entry_ = Entry{.name = name, .shape = {}};
      seen_ = 0;
    } else if (place_ == Place::kTensor) {
      field_ = name == "dtype" ? kType : name == "shape" ? kShape : name == "data_offsets" ? kOffsets : 0;
      if (field_ == 0 || (seen_ & field_) != 0) {
        unexpected(fmt::format("the {} {}", field_ == 0 ? "unknown key" : "second key", shown(name)));
      }
      seen_ |= field_;
    } else {
      metadata_keys_.push_back(name);
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kTensor) {
      if (seen_ != (kType | kShape | kOffsets)) {
        unexpected("the end of the entry");
      }
      place_ = Place::kRoot;
      entries_.push_back(std::move(entry_));
    } else if (place_ == Place::kMetadata) {
      place_ = Place::kRoot;
      refuse_equal_metadata_keys();
    }
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::kTensor && field_ == kType) {
      const auto type = type_of_stored_name(value);
      if (!type) {
        throw ConfigError(
            fmt::format("{}: {}: expected one of the types {}, found {}; store the tensor in one of these",
                        file_.string(), where(), stored_type_names(), shown(value)));
      }
      entry_.type = *type;
    } else if (place_ != Place::kMetadata) {
      unexpected("the text " + shown(value));
    }
    return true;
  }

  bool start_array(std::size_t /*num_elements*/) override {
    if (place_ != Place::kTensor || (field_ != kShape && field_ != kOffsets)) {
      unexpected("a list");
    }
    place_ = field_ == kShape ? Place::kShape : Place::kOffsets;
    num_offsets_ = 0;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::kShape && entry_.shape.size() < kMaxDims &&
        value <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      entry_.shape.push_back(static_cast<std::int64_t>(value));
    } else if (place_ == Place::kOffsets && num_offsets_ < 2) {
      (num_offsets_++ == 0 ? entry_.begin : entry_.end) = value;
    } else {
      const bool is_in_list = place_ == Place::kShape || place_ == Place::kOffsets;
      const std::size_t position = place_ == Place::kShape ? entry_.shape.size() : num_offsets_;
      unexpected(is_in_list ? fmt::format("{} as element {}", value, position + 1) : std::to_string(value));
    }
    return true;
  }

  bool end_array() override {
    if (place_ == Place::kOffsets && num_offsets_ != 2) {
      unexpected("the end of the list");
    }
    place_ = Place::kTensor;
    return true;
  }

 private:
  [[nodiscard]] ConfigError refusal(std::string_view found) const override {
    return damage(file_, where(), expectation(), found);
  }

  enum class Place { kStart, kRoot, kTensor, kShape, kOffsets, kMetadata };
  static constexpr unsigned kType = 1, kShape = 2, kOffsets = 4;

  [[nodiscard]] std::string where() const {
    if (place_ == Place::kStart || (place_ == Place::kRoot && entry_.name.empty())) {
      return "header";
    }
    return place_ == Place::kMetadata ? "header, __metadata__" : "tensor " + shown(entry_.name);
  }

  [[nodiscard]] std::string_view expectation() const {
    switch (place_) {
      case Place::kStart:
        return "a JSON object";
      case Place::kRoot:
        return "one entry {dtype, shape, data_offsets} per tensor";
      case Place::kTensor:
        return "dtype (text), shape (list) and data_offsets (list), each once";
      case Place::kShape:
        return "a shape of at most 64 whole numbers from 0 to 2^63 - 1";
      case Place::kOffsets:
        return "data_offsets of two whole numbers [begin, end]";
      case Place::kMetadata:
        return "text values under distinct keys";
    }
    return "nothing";
  }

  void refuse_equal_metadata_keys() {
    std::sort(metadata_keys_.begin(), metadata_keys_.end());
    const auto twin = std::adjacent_find(metadata_keys_.begin(), metadata_keys_.end());
    if (twin != metadata_keys_.end()) {
      throw damage(file_, "header, __metadata__", "distinct keys", shown(*twin) + " twice");
    }
    metadata_keys_ = {};
  }

  const std::filesystem::path& file_;
  Place place_ = Place::kStart;
  unsigned field_ = 0, seen_ = 0;
  std::size_t num_offsets_ = 0;
  bool has_metadata_ = false;
  Entry entry_;
  std::deque<Entry> entries_;  // growing takes no second copy
  std::deque<std::string> metadata_keys_;
};

/// The header's text, once its stated length is known to be possible.
std::string_view header_of(const MappedFile& mapped) {
  const std::string_view bytes = mapped.bytes();
  if (bytes.size() < kLengthBytes) {
    throw damage(mapped.path(), "header length", "8 bytes at the beginning",
                 fmt::format("a file of {} bytes", bytes.size()));
  }
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), kLengthBytes);
  const std::uint64_t limit = std::min<std::uint64_t>(kMaxHeaderBytes, bytes.size() - kLengthBytes);
  if (length > limit) {
    throw damage(mapped.path(), "header length", fmt::format("at most {} in a file of {} bytes", limit, bytes.size()),
                 std::to_string(length));
  }
  return bytes.substr(kLengthBytes, length);
}

void check_ranges(const std::filesystem::path& file, const std::deque<Entry>& entries, std::uint64_t data_bytes) {
  for (const Entry& entry : entries) {
    const std::string where = "tensor " + shown(entry.name);
    if (entry.begin > entry.end || entry.end > data_bytes) {
      throw damage(file, where, fmt::format("data_offsets within the file's {} bytes of data", data_bytes),
                   fmt::format("[{}, {}]", entry.begin, entry.end));
    }
    const auto bytes = checked_bytes(entry);
    if (!bytes || *bytes != entry.end - entry.begin) {
      throw damage(file, where,
                   fmt::format("data_offsets of {} for {} [{}]",
                               bytes ? fmt::format("{} bytes", *bytes) : "more than 2^63 bytes",
                               stored_name_of_type(entry.type), fmt::join(entry.shape, ", ")),
                   fmt::format("[{}, {}], {} bytes", entry.begin, entry.end, entry.end - entry.begin));
    }
  }
  std::vector<std::uint32_t> order(entries.size());
  std::iota(order.begin(), order.end(), 0U);
  std::sort(order.begin(), order.end(), [&](std::uint32_t left, std::uint32_t right) {
    return std::pair(entries[left].begin, entries[left].end) < std::pair(entries[right].begin, entries[right].end);
  });
  std::uint64_t covered = 0;
  for (const std::uint32_t i : order) {
    if (entries[i].begin != covered) {
      throw damage(file, "tensor " + shown(entries[i].name),
                   fmt::format("its data to begin at {}, where the previous ends", covered),
                   fmt::format("{} ({})", entries[i].begin, entries[i].begin > covered ? "a hole" : "an overlap"));
    }
    covered = entries[i].end;
  }
  if (covered != data_bytes) {
    throw damage(file, "data", fmt::format("{} bytes, as the header says", covered),
                 fmt::format("{} bytes", data_bytes));
  }
}

/// Thread: const methods are safe.
class SafetensorsFile : public WeightSource {
 public:
  explicit SafetensorsFile(const std::filesystem::path& file) : mapped_(std::make_shared<MappedFile>(file)) {
    const std::string_view header = header_of(*mapped_);
    data_ = mapped_->bytes().substr(kLengthBytes + header.size());
    HeaderForm form(mapped_->path());
    read_strictly(header, form);
    entries_ = form.take_entries();
    std::sort(entries_.begin(), entries_.end(),
              [](const Entry& left, const Entry& right) { return left.name < right.name; });
    const auto twin = std::adjacent_find(entries_.begin(), entries_.end(),
                                         [](const Entry& left, const Entry& right) { return left.name == right.name; });
    if (twin != entries_.end()) {
      throw damage(mapped_->path(), "tensor " + shown(twin->name), "one entry", "the key twice");
    }
    check_ranges(mapped_->path(), entries_, data_.size());
  }

  [[nodiscard]] bool contains(const std::string& name) const override { return find(name) != nullptr; }
  [[nodiscard]] std::vector<std::int64_t> shape(const std::string& name) const override { return entry(name).shape; }

  [[nodiscard]] at::Tensor get(const std::string& name) const override {
    const Entry& found = entry(name);
    mapped_->check_unchanged();
    const std::string_view bytes = data_.substr(found.begin, found.end - found.begin);
    if (found.type == at::kBool) {
      check_booleans(found, bytes);
    }
    const auto options = at::TensorOptions().dtype(found.type);
    if (reinterpret_cast<std::uintptr_t>(bytes.data()) % c10::elementSize(found.type) != 0) {
      at::Tensor aligned = at::empty(found.shape, options);
      if (!bytes.empty()) {
        std::memcpy(aligned.data_ptr(), bytes.data(), bytes.size());
      }
      return aligned;
    }
    return at::from_blob(
        const_cast<char*>(bytes.data()), found.shape, [keep = mapped_](void*) {}, options);
  }

  [[nodiscard]] std::vector<std::string> names() const override {
    std::vector<std::string> names;
    names.reserve(entries_.size());
    for (const Entry& each : entries_) {
      names.push_back(each.name);
    }
    return names;
  }

  void drop_pages(const std::string& name) const override {
    const Entry& found = entry(name);
    mapped_->drop_pages(mapped_->bytes().size() - data_.size() + found.begin, found.end - found.begin);
  }

 private:
  [[nodiscard]] const Entry* find(const std::string& name) const {
    const auto place =
        std::lower_bound(entries_.begin(), entries_.end(), name,
                         [](const Entry& each, const std::string& wanted) { return each.name < wanted; });
    return place != entries_.end() && place->name == name ? &*place : nullptr;
  }

  [[nodiscard]] const Entry& entry(const std::string& name) const {
    const Entry* found = find(name);
    ESPALIER_CHECK(found != nullptr, "{} has no tensor {}", mapped_->path().string(), shown(name));
    return *found;
  }

  // A bool that is neither 0 nor 1 is undefined behaviour in every kernel that reads it.
  void check_booleans(const Entry& found, std::string_view bytes) const {
    const auto wrong = std::find_if(bytes.begin(), bytes.end(), [](char byte) { return byte != 0 && byte != 1; });
    if (wrong != bytes.end()) {
      throw damage(mapped_->path(), "tensor " + shown(found.name), "booleans of 0 or 1",
                   fmt::format("{} as its element {}", static_cast<unsigned char>(*wrong), wrong - bytes.begin()));
    }
  }

  std::shared_ptr<const MappedFile> mapped_;
  std::string_view data_;
  std::deque<Entry> entries_;  // sorted by name
};

}  // namespace

std::unique_ptr<WeightSource> open_safetensors(const std::filesystem::path& file) {
  return std::make_unique<SafetensorsFile>(file);
}

}  // namespace espalier::model
