// SPDX-License-Identifier: Apache-2.0
// Files of other writers (h5py among them) are made with HDF5's own functions.
#include "common/hdf5_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hdf5.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>

#include "common/durable_file.h"
#include "common/error.h"
#include "temporary_folder.h"

namespace espalier {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class Hdf5FileTest : public ::testing::Test {
 protected:
  template <typename T>
  void expect_round_trip(const std::string& name, Hdf5Type type, const std::vector<T>& values) {
    EXPECT_EQ(size_of(type), sizeof(T));
    {
      Hdf5File file = Hdf5File::create(path_);
      file.write(name, type, {static_cast<std::int64_t>(values.size()) / 2, 2}, values.data());
      file.flush_and_close();
    }
    const Hdf5File file = Hdf5File::open(path_);
    const Hdf5Info info = file.info(name);
    EXPECT_EQ(info.type, type);
    EXPECT_THAT(info.shape, ElementsAre(static_cast<std::int64_t>(values.size()) / 2, 2));
    EXPECT_EQ(file.read_vector<T>(name), values);
  }

  /// A file with one dataset of `file_type` that holds `values` of `memory_type`.
  template <typename T>
  void write_foreign(hid_t file_type, hid_t memory_type, const std::vector<T>& values) {
    const hid_t file = H5Fcreate(path_.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    const hsize_t extent = values.size();
    const hid_t space = H5Screate_simple(1, &extent, nullptr);
    const hid_t dataset = H5Dcreate2(file, "values", file_type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    ASSERT_GE(H5Dwrite(dataset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0);
    H5Dclose(dataset);
    H5Sclose(space);
    H5Fclose(file);
  }

  /// A file with one text attribute "text" on the root; `bytes` 0 means variable length.
  void write_foreign_text(const std::string& text, std::size_t bytes, H5T_str_t padding, H5T_cset_t letters) {
    const hid_t file = H5Fcreate(path_.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, bytes == 0 ? H5T_VARIABLE : bytes);
    H5Tset_strpad(type, padding);
    H5Tset_cset(type, letters);
    const hid_t space = H5Screate(H5S_SCALAR);
    const hid_t attribute = H5Acreate2(file, "text", type, space, H5P_DEFAULT, H5P_DEFAULT);
    std::string fixed = text;
    fixed.resize(std::max(bytes, text.size()), padding == H5T_STR_SPACEPAD ? ' ' : '\0');
    const char* variable = text.c_str();
    ASSERT_GE(H5Awrite(attribute, type, bytes == 0 ? static_cast<const void*>(&variable) : fixed.data()), 0);
    H5Aclose(attribute);
    H5Sclose(space);
    H5Tclose(type);
    H5Fclose(file);
  }

  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_ / "file.h5";
};

TEST_F(Hdf5FileTest, EveryTypeComesBackAsItWas) {
  expect_round_trip<std::int32_t>("a", Hdf5Type::kInt32, {1, -2, std::numeric_limits<std::int32_t>::min(), 4});
  expect_round_trip<std::int64_t>("a", Hdf5Type::kInt64, {1, -2, std::numeric_limits<std::int64_t>::max(), 4});
  expect_round_trip<std::uint8_t>("a", Hdf5Type::kUInt8, {0, 1, 254, 255});
  expect_round_trip<std::uint16_t>("a", Hdf5Type::kUInt16, {0, 1, 0x3f80, 65535});
  expect_round_trip<float>("a", Hdf5Type::kFloat32, {0.1F, -0.0F, 1e-40F, INFINITY});
  expect_round_trip<double>("deep/in/groups", Hdf5Type::kFloat64, {0.1, -1e300, 5e-324, -INFINITY});
}

TEST_F(Hdf5FileTest, KeepsScalarsAndEmptyShapes) {
  const std::int64_t value = 42;
  Hdf5File file = Hdf5File::create(path_);
  file.write("scalar", Hdf5Type::kInt64, {}, &value);
  file.write("empty", Hdf5Type::kFloat32, {0, 3}, nullptr);
  EXPECT_THAT(file.info("scalar").shape, ElementsAre());
  EXPECT_THAT(file.read_vector<std::int64_t>("scalar"), ElementsAre(42));
  EXPECT_THAT(file.info("empty").shape, ElementsAre(0, 3));
  EXPECT_TRUE(file.read_vector<float>("empty").empty());
}

TEST_F(Hdf5FileTest, KnowsWhatItContains) {
  const std::int32_t value = 1;
  Hdf5File file = Hdf5File::create(path_);
  for (const char* name : {"train/labels", "train/ids", "test/ids"}) {
    file.write(name, Hdf5Type::kInt32, {1}, &value);
  }
  EXPECT_THAT(file.children("/"), ElementsAre("test", "train"));
  EXPECT_THAT(file.children("train"), ElementsAre("ids", "labels"));
  EXPECT_TRUE(file.contains("/"));
  EXPECT_TRUE(file.contains("train"));
  EXPECT_TRUE(file.contains("train/ids"));
  EXPECT_FALSE(file.contains("train/id"));
  EXPECT_FALSE(file.contains("absent/ids"));
  EXPECT_FALSE(file.contains("train/ids/below"));
  EXPECT_FALSE(file.contains(""));
  EXPECT_THAT(message_of<ConfigError>([&] { static_cast<void>(file.children("train/ids")); }), HasSubstr("a group"));
}

TEST_F(Hdf5FileTest, ErrorsNameFileAndObject) {
  Hdf5File file = Hdf5File::create(path_);
  const float value = 1;
  file.write("group/values", Hdf5Type::kFloat32, {1}, &value);
  EXPECT_THAT(message_of<ConfigError>([&] { static_cast<void>(file.info("group/absent")); }),
              AllOf(HasSubstr("file.h5"), HasSubstr("group/absent"), HasSubstr("no such object")));
  EXPECT_THAT(message_of<ConfigError>([&] { static_cast<void>(file.info("group")); }), HasSubstr("to be a dataset"));
  EXPECT_THAT(message_of<IoError>([&] { file.write("group/values", Hdf5Type::kFloat32, {1}, &value); }),
              AllOf(HasSubstr("file.h5"), HasSubstr("group/values"), HasSubstr("float32 [1]")));
}

TEST_F(Hdf5FileTest, ConvertsWithinAKindOnly) {
  Hdf5File file = Hdf5File::create(path_);
  const std::vector<std::int64_t> integers{1, -5};
  const std::vector<float> floats{0.5F, 2};
  file.write("integers", Hdf5Type::kInt64, {2}, integers.data());
  file.write("floats", Hdf5Type::kFloat32, {2}, floats.data());
  EXPECT_THAT(file.read_vector<std::int32_t>("integers"), ElementsAre(1, -5));
  EXPECT_THAT(file.read_vector<double>("floats"), ElementsAre(0.5, 2.0));
  EXPECT_THAT(message_of<ConfigError>([&] { static_cast<void>(file.read_vector<float>("integers")); }),
              AllOf(HasSubstr("convert to float32"), HasSubstr("found int64")));
  EXPECT_THROW(static_cast<void>(file.read_vector<std::int32_t>("floats")), ConfigError);
}

TEST_F(Hdf5FileTest, RefusesValuesThatDoNotFitInsteadOfClampingThem) {
  Hdf5File file = Hdf5File::create(path_);
  const std::int64_t large = std::int64_t{1} << 40;
  const double huge = 1e300;
  const std::int32_t negative = -1;
  file.write("large", Hdf5Type::kInt64, {1}, &large);
  file.write("huge", Hdf5Type::kFloat64, {1}, &huge);
  file.write("negative", Hdf5Type::kInt32, {1}, &negative);
  EXPECT_THAT(message_of<ConfigError>([&] { static_cast<void>(file.read_vector<std::int32_t>("large")); }),
              AllOf(HasSubstr("large"), HasSubstr("fit into int32")));
  EXPECT_THROW(static_cast<void>(file.read_vector<float>("huge")), ConfigError);
  EXPECT_THROW(static_cast<void>(file.read_vector<std::uint8_t>("negative")), ConfigError);
}

TEST_F(Hdf5FileTest, ReadsTheOtherByteOrder) {
  write_foreign<std::int32_t>(H5T_STD_I32BE, H5T_NATIVE_INT32, {1, -2, 70000});
  const Hdf5File file = Hdf5File::open(path_);
  EXPECT_EQ(file.info("values").type, Hdf5Type::kInt32);
  EXPECT_THAT(file.read_vector<std::int32_t>("values"), ElementsAre(1, -2, 70000));
}

TEST_F(Hdf5FileTest, RefusesUnsupportedElementTypes) {
  write_foreign<std::uint64_t>(H5T_STD_U64LE, H5T_NATIVE_UINT64, {1});
  const auto text = message_of<ConfigError>([&] { static_cast<void>(Hdf5File::open(path_).info("values")); });
  EXPECT_THAT(text, AllOf(HasSubstr("values"), HasSubstr("found another type")));
}

TEST_F(Hdf5FileTest, AttributesComeBackAndCanBeReplaced) {
  {
    Hdf5File file = Hdf5File::create(path_);
    const std::int32_t value = 1;
    file.write("group/values", Hdf5Type::kInt32, {1}, &value);
    file.write_attribute("/", "format", "old");
    file.write_attribute("/", "format",
                         "Gr\xc3\xbc\xc3\x9f"
                         "e");
    file.write_attribute("group", "empty", "");
    file.write_attribute("group/values", "count", std::int64_t{1} << 60);
    file.write_attribute("/", "long", std::string(200'000, 'x'));
    EXPECT_THROW(file.write_attribute("absent", "a", "b"), ConfigError);
    EXPECT_THROW(file.write_attribute("/", "a", std::string("nul\0l", 5)), InternalError);
    file.flush_and_close();
  }
  const Hdf5File file = Hdf5File::open(path_);
  EXPECT_EQ(file.text_attribute("/", "format"),
            "Gr\xc3\xbc\xc3\x9f"
            "e");
  EXPECT_EQ(file.text_attribute("group", "empty"), "");
  EXPECT_EQ(file.text_attribute("/", "long"), std::string(200'000, 'x'));
  EXPECT_EQ(file.int_attribute("group/values", "count"), std::int64_t{1} << 60);
  EXPECT_EQ(file.text_attribute("/", "absent"), std::nullopt);
  EXPECT_EQ(file.int_attribute("/", "absent"), std::nullopt);
  EXPECT_THROW(static_cast<void>(file.text_attribute("nowhere", "format")), ConfigError);
  EXPECT_THAT(message_of<ConfigError>([&] { static_cast<void>(file.int_attribute("/", "format")); }),
              AllOf(HasSubstr("format"), HasSubstr("one integer")));
  EXPECT_THROW(static_cast<void>(file.text_attribute("group/values", "count")), ConfigError);
}

TEST_F(Hdf5FileTest, ReadsTextsOfEveryStorageKind) {
  const std::string german =
      "Gr\xc3\xbc\xc3\x9f"
      "e";
  write_foreign_text(german, 0, H5T_STR_NULLTERM, H5T_CSET_UTF8);  // as h5py writes str
  EXPECT_EQ(Hdf5File::open(path_).text_attribute("/", "text"), german);
  write_foreign_text("ascii", 0, H5T_STR_NULLTERM, H5T_CSET_ASCII);
  EXPECT_EQ(Hdf5File::open(path_).text_attribute("/", "text"), "ascii");
  write_foreign_text(german, german.size(), H5T_STR_NULLPAD, H5T_CSET_UTF8);  // as numpy.bytes_, no room for a null
  EXPECT_EQ(Hdf5File::open(path_).text_attribute("/", "text"), german);
  write_foreign_text("term", 10, H5T_STR_NULLTERM, H5T_CSET_ASCII);
  EXPECT_EQ(Hdf5File::open(path_).text_attribute("/", "text"), "term");
  write_foreign_text("space", 10, H5T_STR_SPACEPAD, H5T_CSET_ASCII);
  EXPECT_EQ(Hdf5File::open(path_).text_attribute("/", "text"), "space");
}

TEST_F(Hdf5FileTest, WritesTextsAsH5pyDoes) {
  Hdf5File file = Hdf5File::create(path_);
  file.write_attribute("/", "text", "value");
  file.flush_and_close();
  const hid_t raw = H5Fopen(path_.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  const hid_t attribute = H5Aopen(raw, "text", H5P_DEFAULT);
  const hid_t type = H5Aget_type(attribute);
  EXPECT_GT(H5Tis_variable_str(type), 0);
  EXPECT_EQ(H5Tget_cset(type), H5T_CSET_UTF8);
  H5Tclose(type);
  H5Aclose(attribute);
  H5Fclose(raw);
}

TEST_F(Hdf5FileTest, OpeningSaysWhatIsWrong) {
  EXPECT_THAT(message_of<ConfigError>([&] { Hdf5File::open(folder_ / "absent.h5"); }),
              AllOf(HasSubstr("absent.h5"), HasSubstr("expected an HDF5 file")));
  EXPECT_THROW(Hdf5File::open(folder_.path()), ConfigError);
  write_file_durably(path_, "id\tlabel\ttext\n");
  EXPECT_THAT(message_of<ConfigError>([&] { Hdf5File::open(path_); }), HasSubstr("found another format"));
  write_file_durably(path_, "");
  EXPECT_THROW(Hdf5File::open(path_), ConfigError);
  EXPECT_THAT(message_of<IoError>([&] { Hdf5File::create(folder_ / "absent/file.h5"); }),
              AllOf(HasSubstr("absent/file.h5"), HasSubstr("No such file")));
}

TEST_F(Hdf5FileTest, RefusesAFileThatWasCutShort) {
  Hdf5File file = Hdf5File::create(path_);
  const std::vector<float> values(10'000);
  file.write("values", Hdf5Type::kFloat32, {10'000}, values.data());
  file.flush_and_close();
  std::filesystem::resize_file(path_, 20'000);
  EXPECT_THAT(message_of<IoError>([&] { Hdf5File::open(path_); }), AllOf(HasSubstr("file.h5"), HasSubstr("cut short")));
}

TEST_F(Hdf5FileTest, AFullDiskIsAnErrorAndNoCrash) {
  const std::vector<float> values(100'000);
  const FullDisk full(65'536);
  const auto text = message_of<IoError>([&] {
    Hdf5File file = Hdf5File::create(path_);
    file.write("values", Hdf5Type::kFloat32, {100'000}, values.data());
    file.flush_and_close();
  });
  EXPECT_THAT(text, AllOf(HasSubstr("file.h5"), HasSubstr("File too large")));
}

TEST_F(Hdf5FileTest, EqualContentsGiveEqualBytes) {
  const auto bytes_after = [&](const char* name) {
    const std::int32_t value = 7;
    Hdf5File file = Hdf5File::create(folder_ / name);
    file.write("group/values", Hdf5Type::kInt32, {1}, &value);
    file.write_attribute("/", "format", "1");
    file.flush_and_close();
    return read_file(folder_ / name);
  };
  EXPECT_EQ(bytes_after("first.h5"), bytes_after("second.h5"));
  // A time stamp, which counts seconds, would make later files differ.
  const hid_t raw = H5Fopen((folder_ / "first.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  H5G_stat_t status{};
  EXPECT_GE(H5Gget_objinfo(raw, "group/values", /*follow_link=*/true, &status), 0);
  EXPECT_EQ(status.mtime, 0);
  H5Fclose(raw);
}

TEST_F(Hdf5FileTest, MovesAndRefusesUseAfterClosing) {
  Hdf5File first = Hdf5File::create(path_);
  Hdf5File second = std::move(first);
  second.write_attribute("/", "a", std::int64_t{1});
  second = Hdf5File::create(folder_ / "other.h5");
  second.flush_and_close();
  EXPECT_THROW(second.flush_and_close(), InternalError);
  EXPECT_THROW(static_cast<void>(second.contains("/")), InternalError);
  EXPECT_THROW(static_cast<void>(second.info("a")), InternalError);
  EXPECT_EQ(Hdf5File::open(path_).int_attribute("/", "a"), 1);
}

TEST_F(Hdf5FileTest, SaysWhereTheBytesOfAnArrayLie) {
  const std::vector<std::uint8_t> values = {201, 202, 203, 204};
  {
    Hdf5File file = Hdf5File::create(path_);
    file.write("group/values", Hdf5Type::kUInt8, {2, 2}, values.data());
    file.write("none", Hdf5Type::kUInt8, {0}, values.data());
    file.flush_and_close();
  }
  const Hdf5File file = Hdf5File::open(path_);
  const auto offset = file.byte_offset("group/values");
  ASSERT_TRUE(offset);
  std::ifstream bytes(path_, std::ios::binary);
  bytes.seekg(*offset);
  std::vector<std::uint8_t> found(4);
  bytes.read(reinterpret_cast<char*>(found.data()), 4);
  EXPECT_EQ(found, values);
  EXPECT_FALSE(file.byte_offset("none"));
  EXPECT_THROW((void)file.byte_offset("absent"), ConfigError);
}

TEST_F(Hdf5FileTest, SaysThatBytesInPiecesLieNowhere) {
  const hid_t file = H5Fcreate(path_.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  const hsize_t extent = 4, piece = 2;
  const hid_t space = H5Screate_simple(1, &extent, nullptr);
  const hid_t layout = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(layout, 1, &piece);
  H5Dclose(H5Dcreate2(file, "values", H5T_NATIVE_UINT8, space, H5P_DEFAULT, layout, H5P_DEFAULT));
  H5Pclose(layout);
  H5Sclose(space);
  H5Fclose(file);
  EXPECT_FALSE(Hdf5File::open(path_).byte_offset("values"));
}

}  // namespace
}  // namespace espalier
