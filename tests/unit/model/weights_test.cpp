// SPDX-License-Identifier: Apache-2.0
#include "model/weights.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <spdlog/fmt/fmt.h>

#include <array>
#include <cmath>
#include <fstream>
#include <limits>
#include <optional>

#include "common/error.h"
#include "model/initial.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/model/counted_heap.h"
#include "tests/unit/model/weight_files.h"

namespace espalier::model {
namespace {

using test::entry;
using test::safetensors_bytes;
using test::write_bytes;
using Tensors = std::vector<std::pair<std::string, at::Tensor>>;

/// What the kernel says about the mapping of a file: its addresses and how much of it is resident.
struct Mapping {
  std::uintptr_t begin = 0, end = 0;
  std::int64_t resident_bytes = 0;
};

std::optional<Mapping> find_mapping(const std::filesystem::path& file) {
  std::ifstream maps("/proc/self/smaps");
  std::optional<Mapping> found;
  for (std::string line; std::getline(maps, line);) {
    if (!found && line.ends_with(file.string())) {
      found.emplace();
      std::sscanf(line.c_str(), "%lx-%lx", &found->begin, &found->end);
    } else if (found && line.starts_with("Rss:")) {
      found->resident_bytes = std::stoll(line.substr(4)) * 1024;
      break;
    }
  }
  return found;
}

bool is_inside(const at::Tensor& tensor, const Mapping& mapping) {
  const auto address = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr());
  return address >= mapping.begin && address + tensor.nbytes() <= mapping.end;
}

bool same(const at::Tensor& left, const at::Tensor& right) {
  return left.scalar_type() == right.scalar_type() && left.sizes() == right.sizes() && at::equal(left, right);
}

Tensors one_of_every_type() {
  Tensors tensors;
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort,
                                    at::kChar, at::kByte, at::kBool}) {
    tensors.emplace_back(c10::toString(type),
                         at::arange(6).reshape({2, 3}).remainder(type == at::kBool ? 2 : 6).to(type));
  }
  return tensors;
}

/// Two shards and their index, holding `tensors` in turn.
void write_shards(const std::filesystem::path& folder, const Tensors& tensors) {
  std::array<Tensors, 2> shards;
  std::string map;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    shards[i % 2].push_back(tensors[i]);
    map += (i == 0 ? "\"" : ",\"") + tensors[i].first + "\":\"model-" + std::to_string(i % 2) + ".safetensors\"";
  }
  write_safetensors(folder / "model-0.safetensors", shards[0], {{"format", "pt"}});
  write_safetensors(folder / "model-1.safetensors", shards[1], {{"format", "pt"}});
  write_bytes(folder / "model.safetensors.index.json",
              R"({"metadata":{"total_size":1,"nested":[{"x":[1.5,null,true]}]},"weight_map":{)" + map + "}}");
}

class WeightsTest : public testing::Test {
 protected:
  TemporaryFolder folder_;
  std::filesystem::path file_ = folder_.path() / "model.safetensors";
};

TEST_F(WeightsTest, ReadsBackEveryTypeThatItWrites) {
  const Tensors tensors = one_of_every_type();
  write_safetensors(file_, tensors, {{"format", "pt"}, {"note", "\"quoted\"\n"}});
  const auto source = open_safetensors(file_);
  EXPECT_EQ(source->names().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    ASSERT_TRUE(source->contains(name));
    EXPECT_EQ(source->shape(name), tensor.sizes().vec());
    EXPECT_TRUE(same(source->get(name), tensor)) << name;
  }
  EXPECT_FALSE(source->contains("absent"));
  EXPECT_THROW((void)source->get("absent"), InternalError);
}

TEST_F(WeightsTest, ReadsAFileWrittenByHand) {
  write_bytes(file_, safetensors_bytes(
                         "{\"__metadata__\":{\"format\":\"pt\"}, \"w\" : {\"data_offsets\":[0,8], \"shape\":[1,2],"
                         "\"dtype\":\"F32\"}}   \n",
                         std::string_view("\0\0\x80\x3f\0\0\0\xc0", 8)));
  EXPECT_TRUE(same(open_safetensors(file_)->get("w"), at::tensor({1.0F, -2.0F}).reshape({1, 2})));
}

TEST_F(WeightsTest, ReadsTheLegalOddities) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  write_safetensors(file_,
                    {{"", at::ones({2})},
                     {"scalar", at::scalar_tensor(7, at::kLong)},
                     {"empty", at::empty({0, 3}, at::kHalf)},
                     {"nan", at::tensor({nan, INFINITY})},
                     {"empty at the end \xC3\xA9", at::empty({2, 0})}},
                    {});
  const auto source = open_safetensors(file_);
  EXPECT_TRUE(same(source->get(""), at::ones({2})));
  EXPECT_TRUE(same(source->get("scalar"), at::scalar_tensor(7, at::kLong)));
  EXPECT_TRUE(same(source->get("empty"), at::empty({0, 3}, at::kHalf)));
  EXPECT_TRUE(same(source->get("empty at the end \xC3\xA9"), at::empty({2, 0})));
  EXPECT_TRUE(std::isnan(source->get("nan")[0].item<float>()));

  write_safetensors(file_, {}, {});
  EXPECT_TRUE(open_safetensors(file_)->names().empty());
}

TEST_F(WeightsTest, StoresViewsAsTheyLook) {
  const at::Tensor matrix = at::arange(12).reshape({3, 4});
  write_safetensors(file_, {{"transposed", matrix.t()}, {"column", matrix.select(1, 2)}}, {});
  const auto source = open_safetensors(file_);
  EXPECT_TRUE(same(source->get("transposed"), matrix.t()));
  EXPECT_TRUE(same(source->get("column"), matrix.select(1, 2)));
}

TEST_F(WeightsTest, RefusesToWriteWhatCannotBeReadBack) {
  const at::Tensor x = at::ones({2});
  EXPECT_THROW(write_safetensors(file_, {{"x", x}, {"x", x}}, {}), InternalError);
  EXPECT_THROW(write_safetensors(file_, {{"__metadata__", x}}, {}), InternalError);
  EXPECT_THROW(write_safetensors(file_, {{"x", at::Tensor()}}, {}), InternalError);
  EXPECT_THROW(write_safetensors(file_, {{"x", x.to(at::kComplexFloat)}}, {}), InternalError);
  EXPECT_THROW(write_safetensors(file_, {{"x", x}}, {{"key", "1"}, {"key", "2"}}), InternalError);
  EXPECT_FALSE(std::filesystem::exists(file_));
  EXPECT_THROW(write_safetensors(folder_.path() / "absent" / "file", {{"x", x}}, {}), IoError);
  EXPECT_THROW(write_safetensors("/dev/full", {{"x", x}}, {}), IoError);
}

TEST_F(WeightsTest, GivesViewsOfTheMappingAndKeepsItAlive) {
  const at::Tensor x = at::arange(1000).to(at::kFloat);
  write_safetensors(file_, {{"x", x}, {"half", x.to(at::kHalf)}}, {});
  at::Tensor view;
  {
    const auto source = open_safetensors(file_);
    const test::HeapPeak peak;
    view = source->get("x");
    EXPECT_LT(peak.bytes(), 1000);
    const auto mapping = find_mapping(file_);
    ASSERT_TRUE(mapping);
    EXPECT_TRUE(is_inside(view, *mapping));
    EXPECT_TRUE(is_inside(source->get("half"), *mapping));
  }
  EXPECT_TRUE(find_mapping(file_));
  EXPECT_TRUE(same(view, x));
  view.reset();
  EXPECT_FALSE(find_mapping(file_));
}

TEST_F(WeightsTest, CopiesOnlyWhatTheFileDoesNotAlign) {
  const Tensors tensors{{"bytes", at::arange(3).to(at::kByte)}, {"odd", at::arange(4).to(at::kFloat)}};
  write_safetensors(file_, tensors, {});
  const auto source = open_safetensors(file_);
  const auto mapping = find_mapping(file_);
  ASSERT_TRUE(mapping);
  EXPECT_TRUE(is_inside(source->get("bytes"), *mapping));
  const at::Tensor odd = source->get("odd");
  EXPECT_FALSE(is_inside(odd, *mapping));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(odd.const_data_ptr()) % sizeof(float), 0U);
  EXPECT_TRUE(same(odd, tensors[1].second));
}

TEST_F(WeightsTest, AlignsTheDataWhateverTheLengthOfTheNames) {
  for (std::size_t length = 1; length <= 8; ++length) {
    const std::string name(length, 'n');
    write_safetensors(file_, {{name, at::ones({2}, at::kDouble)}}, {});
    const auto source = open_safetensors(file_);
    EXPECT_TRUE(is_inside(source->get(name), find_mapping(file_).value())) << length;
  }
}

TEST_F(WeightsTest, ReadsOfALargeFileOnlyWhatIsUsedAndGivesPagesBack) {
  constexpr std::int64_t kElements = 8 << 20;
  write_safetensors(file_, {{"used", at::ones({kElements}, at::kChar)}, {"unused", at::ones({kElements}, at::kChar)}},
                    {});
  const auto source = open_safetensors(file_);
  EXPECT_LT(find_mapping(file_)->resident_bytes, 1 << 20);
  const at::Tensor used = source->get("used");
  EXPECT_EQ(used.sum().item<std::int64_t>(), kElements);
  EXPECT_GE(find_mapping(file_)->resident_bytes, kElements);
  EXPECT_LT(find_mapping(file_)->resident_bytes, kElements + (1 << 20));
  source->drop_pages("used");
  EXPECT_LT(find_mapping(file_)->resident_bytes, 1 << 20);
  EXPECT_EQ(used.sum().item<std::int64_t>(), kElements);
  (void)source->digest();
  EXPECT_LT(find_mapping(file_)->resident_bytes, 1 << 20);
}

TEST_F(WeightsTest, SaysThatTheFileChangedInsteadOfCrashing) {
  write_safetensors(file_, {{"x", at::ones({1 << 20})}}, {});
  const auto source = open_safetensors(file_);
  std::filesystem::resize_file(file_, 1000);
  try {
    (void)source->get("x");
    FAIL() << "was accepted";
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find(file_.string()), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("changed while in use"), std::string::npos);
  }
}

TEST_F(WeightsTest, GoesOnReadingTheOldFileWhenANewOneIsRenamedOverIt) {
  write_safetensors(file_, {{"x", at::ones({4})}}, {});
  const auto source = open_safetensors(file_);
  write_safetensors(folder_.path() / "new", {{"x", at::zeros({4})}}, {});
  std::filesystem::rename(folder_.path() / "new", file_);
  EXPECT_TRUE(same(source->get("x"), at::ones({4})));
}

TEST_F(WeightsTest, OpensAHundredThousandTensorsAndFindsEach) {
  // Anything quadratic in the number of tensors would not come back within the test's time limit.
  constexpr int kTensors = 100'000;
  std::string header = "{";
  for (int i = 0; i < kTensors; ++i) {
    const int place = kTensors - 1 - i;
    header += i == 0 ? "" : ",";
    header += entry(fmt::format("tensor.{}", i), "U8", "[1]", fmt::format("[{},{}]", place, place + 1));
  }
  std::string data(kTensors, '\0');
  for (int i = 0; i < kTensors; ++i) {
    data[static_cast<std::size_t>(kTensors - 1 - i)] = static_cast<char>(i % 251);
  }
  write_bytes(file_, safetensors_bytes(header + "}", data));
  const test::HeapPeak peak;
  const auto source = open_safetensors(file_);
  EXPECT_LT(peak.bytes(), 4 * static_cast<std::int64_t>(header.size()));
  ASSERT_EQ(source->names().size(), static_cast<std::size_t>(kTensors));
  for (int i = 0; i < kTensors; ++i) {
    ASSERT_EQ(*source->get("tensor." + std::to_string(i)).const_data_ptr<std::uint8_t>(), i % 251) << i;
  }
}

TEST_F(WeightsTest, ReadsAFolderOfOneFile) {
  write_safetensors(file_, {{"x", at::ones({4})}}, {});
  EXPECT_TRUE(same(open_model_folder(folder_.path())->get("x"), at::ones({4})));
}

TEST_F(WeightsTest, ReadsShardsAsOneModelWithTheDigestOfOneFile) {
  const Tensors tensors = one_of_every_type();
  write_shards(folder_.path(), tensors);
  const auto sharded = open_model_folder(folder_.path());
  for (const auto& [name, tensor] : tensors) {
    ASSERT_TRUE(sharded->contains(name));
    EXPECT_EQ(sharded->shape(name), tensor.sizes().vec());
    EXPECT_TRUE(same(sharded->get(name), tensor)) << name;
  }
  EXPECT_FALSE(sharded->contains("absent"));
  EXPECT_THROW((void)sharded->get("absent"), InternalError);

  const TemporaryFolder single;
  write_safetensors(single.path() / "model.safetensors", tensors, {});
  const auto whole = open_model_folder(single.path());
  EXPECT_EQ(sharded->names(), whole->names());
  EXPECT_EQ(sharded->digest(), whole->digest());
}

TEST_F(WeightsTest, FollowsShardsThatAreLinksOutOfTheFolder) {
  const TemporaryFolder blobs;
  const Tensors tensors = one_of_every_type();
  write_shards(folder_.path(), tensors);
  for (const char* shard : {"model-0.safetensors", "model-1.safetensors"}) {
    std::filesystem::rename(folder_.path() / shard, blobs.path() / shard);
    std::filesystem::create_symlink(blobs.path() / shard, folder_.path() / shard);
  }
  EXPECT_TRUE(same(open_model_folder(folder_.path())->get("Half"), tensors[2].second));
}

TEST_F(WeightsTest, ReadsShardsOfASubfolder) {
  std::filesystem::create_directory(folder_.path() / "sub");
  write_safetensors(folder_.path() / "sub" / "one.safetensors", {{"x", at::ones({4})}}, {});
  write_bytes(folder_.path() / "model.safetensors.index.json", R"({"weight_map":{"x":"sub/one.safetensors"}})");
  EXPECT_TRUE(same(open_model_folder(folder_.path())->get("x"), at::ones({4})));
}

TEST_F(WeightsTest, DigestsNamesTypesShapesAndBytesButNotTheirOrderInTheFile) {
  const auto digest_of_tensors = [&](const Tensors& tensors) {
    write_safetensors(file_, tensors, {});
    return open_safetensors(file_)->digest();
  };
  const at::Tensor x = at::arange(4).to(at::kInt), y = at::ones({2});
  const std::string digest = digest_of_tensors({{"x", x}, {"y", y}});
  EXPECT_EQ(digest.size(), 32U);
  EXPECT_EQ(digest_of_tensors({{"y", y}, {"x", x}}), digest);
  EXPECT_NE(digest_of_tensors({{"x", x}, {"z", y}}), digest);
  EXPECT_NE(digest_of_tensors({{"x", x.reshape({2, 2})}, {"y", y}}), digest);
  EXPECT_NE(digest_of_tensors({{"x", x.view(at::kFloat)}, {"y", y}}), digest);
  EXPECT_NE(digest_of_tensors({{"x", x}, {"y", y + 1}}), digest);
  EXPECT_NE(digest_of_tensors({{"x", x}}), digest);
}

TEST_F(WeightsTest, DrawsRandomWeightsByNameAndNormsAroundOne) {
  const auto source = random_weights({{"b.weight", {64}}, {"a.weight", {64, 8}}, {"a.bias", {64}}}, 0.02, 5);
  EXPECT_EQ(source->names(), (std::vector<std::string>{"a.bias", "a.weight", "b.weight"}));
  EXPECT_EQ(source->shape("a.weight"), (std::vector<std::int64_t>{64, 8}));
  EXPECT_TRUE(same(source->get("a.weight"), normal_by_name({64, 8}, 0.02, 5, "a.weight")));
  EXPECT_TRUE(same(source->get("a.bias"), normal_by_name({64}, 0.02, 5, "a.bias")));
  EXPECT_TRUE(same(source->get("b.weight"), normal_by_name({64}, 0.02, 5, "b.weight") + 1));
  EXPECT_FALSE(source->contains("c"));
  EXPECT_THROW((void)source->get("c"), InternalError);

  const auto rounded = random_weights({{"a.weight", {64, 8}}}, 0.02, 5, at::kBFloat16);
  EXPECT_TRUE(same(rounded->get("a.weight"), source->get("a.weight").to(at::kBFloat16)));

  // The digest comes from what the numbers are made from: nothing has to be drawn for it.
  const auto digest_of = [](double deviation, std::uint64_t seed) {
    return random_weights({{"a.weight", {64, 8}}}, deviation, seed)->digest();
  };
  EXPECT_EQ(digest_of(0.02, 5), digest_of(0.02, 5));
  EXPECT_NE(digest_of(0.02, 5), digest_of(0.02, 6));
  EXPECT_NE(digest_of(0.02, 5), digest_of(0.03, 5));
}

}  // namespace
}  // namespace espalier::model
